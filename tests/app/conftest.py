"""The embedded model, loaded once, and a store of pictures."""

import pytest

from feathervlm.app.model_cache import ModelCache
from feathervlm.app.picture_store import PictureStore
from feathervlm.app.session import Sessions
from feathervlm.inference.model_spec import ModelSpec


@pytest.fixture(scope="session")
def models():
    cache = ModelCache(ModelSpec())
    cache.get("embedded")
    return cache


@pytest.fixture
def store(tmp_path):
    return PictureStore(tmp_path)


@pytest.fixture
def sessions(models, store, tmp_path):
    return Sessions(models, store, tmp_path / "uploads")
