"""Questions, captions and points are laid out in rows with the weights that they should have."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import questions, text
from training.build import EOS, VOCABULARY
from training.labels import shown
from training.questions import Asked
from training.recipe import ALL
from training.world.questions import BINS, LOCATIONS, write_box
from training.world.scenes import SIDE, draw
from training.world.tasks import LOCALIZATION, TASKS

PATCH = 12


def test_questions_fit_their_weights():
    asked = Asked(dict.fromkeys(ALL.shares, 2))
    _, ids, targets, weight, segments, numbers = questions.make_batch(
        [("train", 0, 0, i) for i in range(3)], -1, asked, PATCH
    )
    assert ids.shape == targets.shape == weight.shape == segments.shape == numbers.shape
    assert torch.equal(ids > 0, segments > 0)
    inside = (segments[..., 1:] > 0) & (segments[..., 1:] == segments[..., :-1])
    assert torch.equal(ids[..., 1:][inside], targets[..., :-1][inside])
    assert (ids[weight == asked.coordinates[0]] == text.INDEX["assistant:"]).all()
    found = 0
    for image, row in np.ndindex(3, ids.shape[1]):
        for number in range(1, int(segments[image, row].max()) + 1):
            mine = segments[image, row] == number
            answered = (weight[image, row][mine] > questions.END_WEIGHT).sum()
            assert answered == (4 if list(TASKS)[numbers[image, row][mine][0]] in LOCALIZATION else 1)
            assert targets[image, row][mine][-1] == EOS
            found += 1
    assert found > 0.7 * 3 * sum(asked.shares.values())


@pytest.mark.parametrize("level", range(len(questions.CURRICULUM)))
def test_the_curriculum_sets_the_number_of_things(level):
    counts = questions.CURRICULUM[level]
    asked = Asked({}, captions=60)
    *_, segments, numbers = questions.make_batch([("train", 0, 0, 0)], level, asked, PATCH)
    captions = sum(
        int((segments[0, row][numbers[0, row] == questions.CAPTION]).unique().numel())
        for row in range(segments.shape[1])
    )
    last = level == len(questions.CURRICULUM) - 1
    assert captions in counts or (last and captions in questions.CLUTTERED.counts)


def test_captions_say_what_can_be_seen():
    rng = np.random.default_rng(0)
    asked = Asked({}, captions=3, coordinates=(0.4, 0.3, 0.2, 0.1))
    for seed in range(4):
        scene = draw(np.random.default_rng(seed))
        said = questions.caption(rng, scene, asked)
        assert len(said) == 3
        for tokens, begin, weights, task in said:
            assert task == questions.CAPTION
            assert len(weights) == len(tokens) - begin
            words = [VOCABULARY[token] for token in tokens[begin:]]
            places = "".join(word for word in words if word.startswith("<loc"))
            item = next(item for item in scene.items if write_box(item.box) == places)
            assert words[:3] == [item.size, item.colour, item.shape]
            boxes = [weight for word, weight in zip(words, weights, strict=True) if word.startswith("<loc")]
            assert tuple(boxes) == asked.coordinates


def test_points_ask_for_what_their_patch_shows():
    scene = draw(np.random.default_rng(0))
    owner = shown(scene, PATCH)
    said = questions.point(np.random.default_rng(1), scene, Asked({}, points=80), PATCH)
    assert len(said) == 80
    backgrounds = 0
    for tokens, answer, _, task in said:
        words = [VOCABULARY[token] for token in tokens]
        x, y = (LOCATIONS.index(word) * SIDE // BINS // PATCH for word in words if word.startswith("<loc"))
        thing = owner[y * (SIDE // PATCH) + x]
        assert words[answer] == (scene.background if thing < 0 else scene.items[thing].colour)
        assert task == questions.POINT
        backgrounds += thing < 0
    assert 20 < backgrounds < 60


@given(st.lists(st.integers(1, questions.ROW), min_size=1, max_size=40))
def test_rows_hold_every_question_once(lengths):
    places = questions.arrange(lengths)
    taken = {(row, start + i) for (row, start), length in zip(places, lengths, strict=True) for i in range(length)}
    assert len(taken) == sum(lengths)
    assert max(place for _, place in taken) < questions.ROW
    assert {row for row, _ in taken} == set(range(1 + max(row for row, _ in taken)))


def test_a_question_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="33 tokens does not fit into a row of 32"):
        questions.arrange([3, 33])
