"""Commands without a model: what they answer is made up, what they read and write is real."""

from types import SimpleNamespace

import pytest
from PIL import Image


@pytest.fixture
def stub(monkeypatch):
    """`run` and `demo` answer at once; their pictures are read before, as without this fixture."""
    from feathervlm.evaluation import demo
    from feathervlm.inference import compare

    def run(request, *, draw=False, say=None):
        assert [compare.open_picture(path) for path in request.images]
        overlay = Image.new("RGB", (16, 16), "red") if draw else None
        return SimpleNamespace(overlay=overlay, to_dict=dict)

    def show(request, say=None):
        picture, _ = demo._picture_and_questions(request)
        views = dict.fromkeys(("unpruned", *request.chosen), picture)
        document = {"versions": {"feathervlm": "0", "transformers": "0"}}
        return SimpleNamespace(picture=picture, overview=picture, pictures=views, to_dict=lambda: document)

    monkeypatch.setattr(compare, "run", run)
    monkeypatch.setattr(demo, "show", show)
