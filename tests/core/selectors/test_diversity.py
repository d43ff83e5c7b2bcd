"""Selectors that compare features, against plain Python, by hand, and on tokens with many ties."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reference
from feathervlm.core import Given, LastTokenAttention, Schedule, Stage, Top
from feathervlm.core.budget import kept
from feathervlm.core.scoring_pass import Survivors, SurvivorsOf
from feathervlm.core.selectors import diversity as module
from feathervlm.core.selectors import redundancy
from feathervlm.core.selectors.diversity import DPP, MaxMin, nearest
from feathervlm.core.selectors.redundancy import Dedup, FarFromPivots, GreedyThreshold
from feathervlm.core.signals import Attention, Features

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROPE = LastTokenAttention()
KEEPS = st.floats(0.01, 1) | st.integers(1, 12)
TAUS = st.floats(-1, 1)
ROUNDS = st.integers(1, 9)
GRIDS = [[(1, 7, 7)], [(1, 3, 4), (2, 2, 3), (1, 1, 1)], [], [(1, 5, 5), (1, 4, 2)]]


def sets(mask):
    return [set(row.nonzero().flatten().tolist()) for row in mask]


def by_image(tokens, keep, first, expected_of):
    """What `expected_of(scores, features, count, first)` says of every image, in one set per sample."""
    scores = tokens.signals.answers[Attention()]
    features, found = tokens.signals.answers[Features()], []
    for sample in range(len(tokens.present)):
        found.append(set())
        for image in range(tokens.geometry.images):
            members = tokens.geometry.exists[sample] & (tokens.geometry.image[sample] == image)
            here = (members & tokens.present[sample]).nonzero().flatten().tolist()
            early = {number for number, token in enumerate(here) if first[sample, token]}
            count = min(kept(keep, int(members.sum())), len(here))
            if here:
                args = scores[sample, here].tolist(), features[sample, here].numpy(), count, early
                found[-1] |= {here[number] for number in expected_of(*args)}
    return found


def some(tokens, data):
    """Random tokens that come first."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    share = data.draw(st.sampled_from([0, 0.1, 0.7]))
    return tokens.present & (torch.rand(tokens.present.shape, generator=generator) < share)


@relaxed
@given(st.data(), KEEPS)
def test_max_min_agrees_with_plain_python(batches, data, keep):
    tokens = data.draw(batches(min_images=1))
    first = some(tokens, data)
    expected = by_image(
        tokens, keep, first, lambda _, features, count, early: reference.max_min(features, count, early)
    )
    assert sets((Given(first) >> MaxMin(keep)).select(tokens)) == expected


@relaxed
@given(st.data(), KEEPS, TAUS)
def test_greedy_agrees_with_plain_python(batches, data, keep, tau):
    tokens = data.draw(batches(min_images=1))
    first = some(tokens, data)
    expected = by_image(
        tokens,
        keep,
        first,
        lambda scores, features, count, early: reference.greedy(scores, features, count, tau, early),
    )
    assert sets((Given(first) >> GreedyThreshold(ROPE, keep, tau)).select(tokens)) == expected


@relaxed
@given(st.data(), KEEPS, ROUNDS)
def test_dedup_agrees_with_plain_python(batches, data, keep, per_round):
    tokens = data.draw(batches(min_images=1))
    first = some(tokens, data)
    expected = by_image(
        tokens,
        keep,
        first,
        lambda scores, features, count, early: reference.dedup(scores, features, count, per_round, early),
    )
    assert sets((Given(first) >> Dedup(ROPE, keep, per_round=per_round)).select(tokens)) == expected


@relaxed
@given(st.data(), KEEPS, st.integers(2, 5))
def test_far_agrees_with_plain_python(batches, data, keep, pivots):
    tokens = data.draw(batches(min_images=1))
    first = some(tokens, data)

    def expected_of(scores, features, count, early):
        best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:pivots]
        return reference.far(set(best), features, count, early)

    expected = by_image(tokens, keep, first, expected_of)
    assert sets((Given(first) >> FarFromPivots(Top(ROPE, pivots), keep)).select(tokens)) == expected


@relaxed
@given(st.data(), KEEPS, st.booleans(), st.integers(0, 1000))
def test_dpp_agrees_with_determinants(random_tokens, data, keep, weighted, seed):
    tokens = random_tokens(GRIDS, seed)
    first = some(tokens, data)

    def expected_of(scores, features, count, early):
        return reference.dpp(features, count, scores if weighted else None, early)

    expected = by_image(tokens, keep, first, expected_of)
    assert sets((Given(first) >> DPP(keep, ROPE if weighted else None)).select(tokens)) == expected


@pytest.mark.parametrize("name", ["max-min", "greedy", "dedup", "far", "dpp"])
@pytest.mark.parametrize("seed", range(3))
def test_a_grid_of_49_tokens_in_exact_indices(random_tokens, name, seed):
    tokens = random_tokens([[(1, 7, 7)]], seed)
    scores, features = (tokens.signals.answers[key][0] for key in (Attention(), Features()))
    best = set(scores.topk(4).indices.tolist())
    fast, expected = {
        "max-min": (MaxMin(12), reference.max_min(features, 12)),
        "greedy": (GreedyThreshold(ROPE, 12, 0.3), reference.greedy(scores.tolist(), features, 12, 0.3)),
        "dedup": (
            Top(ROPE, 6) >> Dedup(ROPE, 12),
            reference.dedup(scores.tolist(), features, 12, 8, first_six(scores)),
        ),
        "far": (FarFromPivots(Top(ROPE, 4), 12), reference.far(best, features, 12)),
        "dpp": (DPP(12, ROPE), reference.dpp(features, 12, scores)),
    }[name]
    assert sets(fast.select(tokens)) == [expected]
    assert len(expected) == 12


def first_six(scores):
    return set(scores.topk(6).indices.tolist())


def test_max_min_by_hand(candidates):
    # Two pairs of near twins on opposite sides and one token alone between them.
    angles = torch.tensor([0.0, 0.05, 1.4, 3.1, 3.2])
    answers = {Features(): torch.stack([angles.cos(), angles.sin()], -1)[None]}
    tokens = candidates([[(1, 1, 5)]], answers=answers)
    assert [sets(MaxMin(count).select(tokens))[0] for count in (2, 3, 4)] == [{2, 4}, {0, 2, 4}, {0, 2, 3, 4}]


def test_greedy_by_hand(candidates):
    angles = torch.tensor([0.0, 0.1, 0.2, 1.5, 1.6])
    answers = {Attention(): torch.tensor([[5.0, 4, 3, 2, 1]])}
    answers[Features()] = torch.stack([angles.cos(), angles.sin()], -1)[None]
    tokens = candidates([[(1, 1, 5)]], answers=answers)
    assert sets(GreedyThreshold(ROPE, 2, 0.9).select(tokens)) == [{0, 3}]
    assert sets(GreedyThreshold(ROPE, 3, 0.9).select(tokens)) == [{0, 1, 3}]  # nothing else is left, so by score
    assert sets(GreedyThreshold(ROPE, 3, 1).select(tokens)) == [{0, 1, 2}]


def test_dpp_prefers_what_is_relevant_and_new(candidates):
    answers = {Attention(): torch.tensor([[1.0, 0.9, 0.5, 0.0]])}
    answers[Features()] = torch.tensor([[[1.0, 0], [1, 0.01], [0, 1], [0, 1]]])
    tokens = candidates([[(1, 1, 4)]], answers=answers)
    assert sets(DPP(2, ROPE).select(tokens)) == [{0, 2}]
    assert sets(DPP(3, ROPE).select(tokens)) == [{0, 1, 2}]
    assert sets(DPP(3).select(tokens)) == [{0, 1, 2}]


def test_dpp_beyond_its_rank_keeps_the_most_relevant(random_tokens):
    tokens = random_tokens([[(1, 7, 7)]])
    scores = tokens.signals.answers[Attention()][0]
    spanning = sets(DPP(8, ROPE).select(tokens))[0]
    others = sorted(set(range(49)) - spanning, key=lambda i: -float(scores[i]))
    assert sets(DPP(20, ROPE).select(tokens)) == [spanning | set(others[:12])]
    whole = sets(DPP(8).select(tokens))[0]
    assert sets(DPP(20).select(tokens)) == [whole | set(sorted(set(range(49)) - whole)[:12])]


def test_far_counts_are_exact_where_dart_rounds_down(random_tokens):
    tokens = random_tokens([[(1, 24, 24)]])
    assert int(FarFromPivots(Top(ROPE, 4), 64).select(tokens).sum()) == 64
    shares = [64 - 4 - 4 * ((64 - 4) // 4), (64 - 4) // 4]
    assert shares == [0, 15]
    assert 8 * (64 // 8) + 4 == 68  # DART's own count at the same ratio


def test_visprunes_second_half_stops_at_the_budget(random_tokens):
    tokens = random_tokens([[(1, 24, 24)]])
    selected = sets((Top(ROPE, 32) >> Dedup(ROPE, 64)).select(tokens))[0]
    assert len(selected) == 64
    assert sets(Top(ROPE, 32).select(tokens))[0] < selected


@pytest.mark.parametrize("block", [1, 300, 10**9])
def test_blocks_do_not_show(random_tokens, block, monkeypatch):
    tokens = random_tokens(GRIDS)
    wanted = [sets(selector.select(tokens)) for selector in (MaxMin(0.4), Dedup(ROPE, 0.4))]
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(redundancy, "BLOCK", block)
    assert [sets(selector.select(tokens)) for selector in (MaxMin(0.4), Dedup(ROPE, 0.4))] == wanted


def test_nearest_is_the_best_of_the_others():
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(3, 11, 6, generator=generator, dtype=torch.float64), dim=-1)
    present = torch.rand(3, 11, generator=generator) < 0.7
    found = nearest(directions, present)
    for image in range(3):
        here = present[image].nonzero().flatten().tolist()
        similar = reference.cosines(directions[image].numpy())
        for token in here:
            assert found[image, token] == max(similar[token, other] for other in here if other != token)
    assert nearest(directions[:, :1], present[:, :1]).tolist() == [[-np.inf]] * 3


def test_features_may_be_half_precision(random_tokens):
    tokens = random_tokens([[(1, 7, 7)]])
    tokens.signals.answers[Features()] = tokens.signals.answers[Features()].bfloat16()
    rounded = tokens.signals.answers[Features()][0].float()
    assert sets(MaxMin(9).select(tokens)) == [reference.max_min(rounded, 9)]


def test_signals_and_criteria_are_announced():
    assert list(MaxMin(0.5, "projected").signals()) == [Features("projected")]
    assert list((Top(ROPE, 0.1) >> Dedup(ROPE, 0.5)).signals()) == [Attention(), Attention(), Features()]
    assert list(FarFromPivots(Top(ROPE, 4), 0.5).signals()) == [Attention(), Features()]
    assert list(FarFromPivots(Top(ROPE, 4), 0.5).criteria()) == [ROPE]
    assert list(DPP(0.5).criteria()) == []
    survivors = Survivors(Schedule(Stage(2, MaxMin(0.5))))
    assert list((SurvivorsOf(survivors) | MaxMin(0.5)).signals()) == [survivors, Features()]
