"""Videos: frames in the layout, grids per frame, pictures and videos in one prompt in the order in which they come."""

import pytest
import torch

import feathervlm
from family_cases import FAMILY_CASES
from family_cases.base import PictureInput
from family_cases.qwen import qwen_picture, video
from feathervlm import Grid, PruningError, Schedule, Stage
from feathervlm.families import FAMILIES

VIDEOS = [name for name in FAMILY_CASES if name.endswith("-video")]


def test_every_family_that_takes_videos_is_shown_one():
    shown = {FAMILIES[FAMILY_CASES[name].model().config.model_type] for name in VIDEOS}
    assert shown >= {family for family in FAMILIES.values() if "video" in family.modalities}


@pytest.mark.parametrize("name", VIDEOS)
@torch.no_grad()
def test_a_grid_has_a_stride_in_time(name):
    case = FAMILY_CASES[name]
    model, inputs = case.model(), case.inputs(case.prompt(0))
    with feathervlm.prune(model, Schedule(Stage(at=1, select=Grid((2, 3, 2))))) as pruning:
        model(**inputs)
    kept = pruning.report.grid()
    frames, rows, cols = kept.shape
    assert frames > 1
    expected = torch.zeros(frames, rows, cols, dtype=torch.bool)
    expected[::2, ::3, ::2] = True
    assert torch.equal(kept, expected)
    layout = pruning.report.record.layout
    assert layout.counts == (frames * rows * cols,)


@torch.no_grad()
def test_pictures_and_videos_come_in_the_order_of_the_prompt():
    case = FAMILY_CASES["qwen2_5_vl"]
    model = case.model()
    parts = [video(0), qwen_picture(1), video(2)]
    ids = [1, *(token for part in parts for token in (*part.ids, 7)), 8, 9]
    batch = case.inputs((ids, parts), case.prompt(1))
    with feathervlm.prune(model, "uniform:layer=2,stride=2") as pruning:
        logits = model(**batch).logits
    (one, two, three), (alone,) = pruning.report.record.layout.pictures
    assert [planes[0].shape for planes in (one, two, three, alone)] == [(3, 6, 6), (1, 4, 8), (3, 8, 3), (1, 4, 8)]
    with feathervlm.prune(model, "uniform:layer=2,stride=2"):
        single = model(**case.inputs((ids, parts))).logits
    torch.testing.assert_close(logits[0], single[0], atol=3e-4, rtol=1e-3)


@torch.no_grad()
def test_an_overlay_shows_the_frame_that_is_asked_for():
    from PIL import Image

    case = FAMILY_CASES["llava_onevision-video"]
    with feathervlm.prune(case.model(), Schedule(Stage(at=1, select=Grid((2, 1, 1))))) as pruning:
        case.model()(**case.inputs(case.prompt(0)))
    frame = Image.new("RGB", (60, 60), (200, 200, 200))
    whole, nothing = (pruning.report.overlay(frame, size=60, frame=number) for number in (0, 1))
    assert whole.getpixel((30, 50)) == (200, 200, 200)
    assert max(nothing.getpixel((30, 50))) < 60


@torch.no_grad()
def test_too_few_placeholders_for_a_video_are_an_error():
    case = FAMILY_CASES["qwen2_5_vl-video"]
    good = case.prompt(0)
    ids = [token for i, token in enumerate(good[0]) if i != good[0].index(good[1][0].token)]
    bad = (ids, [PictureInput(good[1][0].ids[1:], good[1][0].tensors, good[1][0].token)])
    with (
        feathervlm.prune(case.model(), "fastv"),
        pytest.raises(PruningError, match="Sample 0 has 1 image placeholders fewer"),
    ):
        case.model()(**case.inputs(bad, good))
