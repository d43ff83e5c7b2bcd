"""Pictures of what survived: kept cells as they were, dropped ones dim, what the model never saw darkest."""

import numpy as np
import pytest
import torch
from PIL import Image

import feathervlm
import tiny_models as tiny
from feathervlm import Grid, Schedule, Stage, methods
from feathervlm.engine.report.overlay import overlay

CAPTION, GAP = 24, 12
KEPT = torch.tensor([[[True, False], [False, True]]])


def picture(size=(40, 20), color=(200, 100, 50)):
    return Image.new("RGB", size, color)


def panel(image, number, width, height):
    left = number * (width + GAP)
    return np.asarray(image)[CAPTION:, left : left + width][:height].astype(float)


def test_kept_cells_keep_their_colour_and_dropped_ones_are_dim():
    pixels = panel(overlay(picture(), [KEPT], ["a"], size=40, dim=0.2), 0, 40, 20)
    for row, col, bright in ((4, 4, 1), (4, 30, 0.2), (15, 4, 0.2), (15, 30, 1)):
        assert pixels[row, col].tolist() == pytest.approx([200 * bright, 100 * bright, 50 * bright], abs=1)
    # Cells end exactly half way.
    assert (pixels[:10, :20] == pixels[0, 0]).all()
    assert (pixels[:10, 20:] == pixels[0, 39]).all()


def test_every_stage_has_a_panel_of_the_picture_s_shape():
    image = overlay(picture(), [KEPT, ~KEPT, KEPT], ["a", "b", "c"], size=80)
    assert image.mode == "RGB"
    assert image.size == (3 * 80 + 2 * GAP, 40 + CAPTION)
    assert panel(image, 0, 80, 40)[2, 2].tolist() == panel(image, 2, 80, 40)[2, 2].tolist() == [200, 100, 50]
    assert panel(image, 1, 80, 40)[2, 2, 0] < 60


def test_outside_the_box_is_darkest():
    pixels = panel(overlay(picture(), [KEPT], ["a"], size=40, dim=0.3, box=(10, 0, 30, 20)), 0, 40, 20)
    kept, dropped, outside = pixels[4, 12, 0], pixels[4, 28, 0], pixels[4, [0, 9, 30, 39], 0]
    assert kept == 200
    assert dropped == pytest.approx(60, abs=1)
    assert outside == pytest.approx([20] * 4, abs=1)
    assert pixels[4, 10, 0] == 200


def test_one_frame_of_a_video_is_shown():
    video = torch.cat([KEPT, ~KEPT])
    frames = [panel(overlay(picture(), [video], ["a"], size=40, frame=frame), 0, 40, 20) for frame in (0, 1)]
    assert frames[0][2, 2, 0] == 200 == frames[1][2, 38, 0]
    assert frames[0][2, 38, 0] < 60


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("size", [(64, 64), (31, 7), (5, 200)])
def test_any_picture_will_do(mode, size):
    image = overlay(Image.new(mode, size), [KEPT], ["a"], size=50)
    assert max(image.size[0], image.size[1] - CAPTION) == 50


def test_a_report_draws_the_image_that_is_asked_for():
    llava = tiny.llava()
    with feathervlm.prune(llava, methods.Feather(layers=(2, 4), keep=0.4)) as pruning, torch.no_grad():
        llava(**tiny.batch(tiny.prompt(2, seed=1), tiny.prompt(1, seed=2)))
    report = pruning.report
    for image, batch in ((0, 0), (1, 0), (0, 1)):
        drawn = report.overlay(picture((60, 60)), image=image, batch=batch, size=60)
        for stage in (0, 1):
            pixels = panel(drawn, stage, 60, 60)
            cells = torch.from_numpy(pixels[5::10, 5::10, 0] == 200)
            assert torch.equal(cells, report.grid(image, stage, batch)[0])


def test_frozen_and_waiting_cells_have_colours_of_their_own():
    modes = torch.tensor([[[1, 0], [2, 3]]])
    pixels = panel(overlay(picture(), [modes], ["a"], size=40, dim=0.2), 0, 40, 20)
    running, dropped, frozen, waiting = pixels[4, 4], pixels[4, 30], pixels[15, 4], pixels[15, 30]
    assert running.tolist() == [200, 100, 50]
    assert dropped.tolist() == pytest.approx([40, 20, 10], abs=1)
    assert frozen.tolist() == pytest.approx([90, 60, 47], abs=1)
    assert waiting.tolist() == pytest.approx([150, 65, 15], abs=1)


def test_a_report_says_what_became_of_every_cell():
    llava, inputs = tiny.llava(), tiny.batch(tiny.prompt(1, seed=1))
    way = Schedule(Stage(2, Grid(3), leave="freeze"), Stage(3, Grid(2), leave="wait"), Stage(5, Grid(3)))
    with torch.no_grad(), feathervlm.prune(llava, way) as pruning:
        llava(**inputs)
    report = pruning.report
    place = torch.arange(6)
    for stage, stride, rest in ((0, 3, 2), (1, 2, 3), (2, 3, 0)):
        kept = (place[:, None] % stride == 0) & (place % stride == 0)
        assert report.modes(stage=stage)[0].tolist() == torch.where(kept, 1, rest).tolist()
        assert report.grid(stage=stage)[0].tolist() == kept.tolist()
    assert report.overlay(picture((40, 40))).size[0] == 3 * 384 + 2 * GAP
