import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm.core import Criterion, LastTokenAttention
from feathervlm.core.candidates import top_per_image

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(st.data())
def test_counts_are_per_image(batches, data):
    tokens = data.draw(batches())
    original, current = tokens.original(), tokens.current()
    assert original.shape == current.shape == (len(tokens.present), tokens.geometry.images)
    for sample in range(len(tokens.present)):
        for image in range(tokens.geometry.images):
            members = (tokens.geometry.image[sample] == image).tolist()
            exists, present = tokens.geometry.exists[sample].tolist(), tokens.present[sample].tolist()
            assert original[sample, image] == sum(m and e for m, e in zip(members, exists, strict=True))
            assert current[sample, image] == sum(m and p for m, p in zip(members, present, strict=True))


@relaxed
@given(st.data())
def test_top_agrees_with_a_plain_sort(batches, naive_top, data):
    tokens = data.draw(batches())
    scores = tokens.score(LastTokenAttention())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    budget = torch.randint(0, 12, (len(scores), tokens.geometry.images), generator=generator)
    first = torch.rand(scores.shape, generator=generator) < 0.4 if data.draw(st.booleans()) else None
    assert torch.equal(top_per_image(scores, tokens, budget, first), naive_top(scores, tokens, budget, first))


@relaxed
@given(st.data())
def test_top_keeps_the_budget_and_nothing_absent(batches, data):
    tokens = data.draw(batches())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    budget = torch.randint(0, 12, (len(tokens.present), tokens.geometry.images), generator=generator)
    keep = top_per_image(tokens.score(LastTokenAttention()), tokens, budget)
    assert not (keep & ~tokens.present).any()
    counts = torch.zeros_like(budget).scatter_add_(1, tokens.geometry.image, keep.long())
    assert torch.equal(counts, budget.minimum(tokens.current()))


def test_equal_scores_keep_the_lowest_indices(candidates):
    tokens = candidates([[(1, 27, 27)], [(1, 27, 26)]])
    keep = top_per_image(torch.zeros(tokens.present.shape), tokens, torch.tensor([[218], [5]]))
    assert keep[0].nonzero().flatten().tolist() == list(range(218))
    assert keep[1].nonzero().flatten().tolist() == list(range(5))


def test_zeros_of_either_sign_are_equal(candidates):
    tokens = candidates([[(1, 1, 4)]])
    keep = top_per_image(torch.tensor([[-0.0, 0.0, -0.0, 0.0]]), tokens, torch.tensor([[2]]))
    assert keep.tolist() == [[True, True, False, False]]


def test_tokens_put_first_beat_any_score(candidates):
    tokens = candidates([[(1, 1, 4)]])
    first = torch.tensor([[False, False, False, True]])
    keep = top_per_image(torch.tensor([[9.0, 8.0, 7.0, -torch.inf]]), tokens, torch.tensor([[2]]), first)
    assert keep.tolist() == [[True, False, False, True]]


def test_each_image_has_a_ranking_of_its_own(candidates):
    tokens = candidates([[(1, 1, 3), (1, 1, 2)]])
    scores = torch.tensor([[5.0, 4.0, 3.0, 1.0, 2.0]])
    assert top_per_image(scores, tokens, torch.tensor([[1, 1]])).tolist() == [[True, False, False, False, True]]


def test_a_batch_without_visual_tokens_keeps_none(candidates):
    tokens = candidates([[], []])
    assert tokens.original().tolist() == tokens.current().tolist() == [[0], [0]]
    assert top_per_image(torch.zeros(2, 0), tokens, torch.ones(2, 1, dtype=torch.long)).shape == (2, 0)


def test_a_criterion_is_computed_once_and_in_float32(candidates):
    tokens = candidates([[(1, 1, 2)]], scores=torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16))
    scores = tokens.score(LastTokenAttention())
    assert scores.dtype == torch.float32
    assert tokens.score(LastTokenAttention()) is scores
    assert len(tokens.signals.asked) == 1
    assert list(tokens.scores) == [LastTokenAttention()]


def test_signals_are_read_only_if_asked(candidates):
    class Unread(Criterion):
        def score(self, tokens):
            return torch.zeros(tokens.present.shape)

    tokens = candidates([[(1, 1, 2)]])
    tokens.score(Unread())
    assert tokens.signals.asked == []
