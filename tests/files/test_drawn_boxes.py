"""Predicted boxes are drawn where they are scored, whatever part of a picture the processor shows."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from feathervlm.evaluation import demo as demos
from feathervlm.evaluation.demo import DemoRequest, show
from feathervlm.evaluation.runner import Asker
from feathervlm.evaluation.tasks.base import QuestionSet
from feathervlm.evaluation.tasks.jsonl import Jsonl
from feathervlm.inference import loading
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.model_spec import ModelSpec

SIZE = (200, 100)
ANSWER = "[0.25, 0.25, 0.50, 1.00]"
EXPECTED = {"crop": (75.0, 25.0, 100.0, 100.0), "pad": (50.0, 0.0, 100.0, 100.0), "stretch": (50.0, 25.0, 100.0, 100.0)}
"""The box of the answer in pixels: of the centre, of the square around the picture, and of the whole picture."""


@pytest.fixture
def model(request, demo, tmp_path):
    """The tiny LLaVA with a processor that crops the centre, pads to a square, or stretches."""
    if request.param == "crop":
        return demo
    folder = shutil.copytree(demo, tmp_path / "model")
    processor = LlavaProcessor.from_pretrained(folder)
    side = processor.image_processor.crop_size["height"]
    square = {"height": side, "width": side}
    processor.image_processor = LlavaImageProcessorPil(
        size={"shortest_edge": side} if request.param == "pad" else square,
        crop_size=square,
        do_center_crop=request.param == "pad",
        do_pad=request.param == "pad",
    )
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("model", "kind"), [(kind, kind) for kind in EXPECTED], indirect=["model"])
def test_demo_draws_what_study_scores(model, kind, tmp_path, monkeypatch):
    picture = tmp_path / "wide.png"
    Image.new("RGB", SIZE, "white").save(picture)
    (tmp_path / "mine.jsonl").write_text(
        '{"image": "wide.png", "prompt": "where?", "box": [75, 25, 100, 100], "box_format": "pixels"}'
    )
    answer = Answerer.answer
    monkeypatch.setattr(
        Answerer, "answer", lambda *args, **more: [replace(one, written=ANSWER) for one in answer(*args, **more)]
    )
    task = Jsonl(tmp_path / "mine.jsonl")
    loaded = loading.load(ModelSpec(str(model), max_new_tokens=1))
    (sample,) = Asker(loaded).answer(QuestionSet(task, task.questions(None)), [0], {"x": "fastv:layer=1"})["x"]
    assert sample.box == EXPECTED[kind]
    shown = show(DemoRequest(picture, "where?", str(model), ("fastv:layer=1",), max_new_tokens=1))
    assert {one.box for one in shown.answers} == {EXPECTED[kind]}
    pixels = np.asarray(shown.pictures["unpruned"]).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 80)
    rows, columns = np.nonzero(red)
    scale, caption = demos.PANEL / SIZE[0], 24
    found = [columns.min(), rows.min() - caption, columns.max(), rows.max() - caption]
    assert np.abs(np.array(found) / scale - EXPECTED[kind]).max() < 1.5
