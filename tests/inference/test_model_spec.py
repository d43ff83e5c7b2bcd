"""Which model answers: defaults of embedded and other models, and fingerprints of files."""

import pytest

from feathervlm import PruningError
from feathervlm.embedded.assets import WEIGHTS
from feathervlm.inference import model_spec
from feathervlm.inference.loading import choose_dtype
from feathervlm.inference.model_spec import ModelSettings, ModelSpec


def test_defaults_of_embedded_and_other_models():
    assert ModelSpec().path == str(WEIGHTS)
    assert ModelSpec().resolve(True) == ModelSettings("cpu", "float32", 5, 40)
    assert ModelSpec("other").resolve(False) == ModelSettings("auto", "auto", 32, 1)
    spec = ModelSpec("other", "cuda:1", "bfloat16", max_new_tokens=7, batch=3)
    assert spec.resolve(True) == spec.resolve(False) == ModelSettings("cuda:1", "bfloat16", 7, 3)


def test_the_stored_type_can_be_the_default():
    assert ModelSpec().as_stored() == ModelSpec()
    assert ModelSpec("other", dtype="float32").as_stored().dtype == "float32"
    assert ModelSpec("other").as_stored().resolve(True).dtype == "stored"
    assert choose_dtype("stored") == choose_dtype("auto") == "auto"


@pytest.mark.parametrize("name", ["batch", "max_new_tokens"])
def test_numbers_are_positive(name):
    with pytest.raises(PruningError, match=f"{name}=0 is not positive"):
        ModelSpec(**{name: 0})


def test_fingerprints_of_directories_and_the_hub(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PruningError, match=r"holds no \.safetensors file"):
        ModelSpec(str(tmp_path)).fingerprint()
    for path in ("models--me--tiny/snapshots/0123abc/config.json", "elsewhere/config.json"):
        monkeypatch.setattr(model_spec, "cached_file", lambda place, name, path=path: path)
        if "snapshots" in path:
            assert ModelSpec("me/tiny").fingerprint() == "0123abc"
        else:
            with pytest.raises(PruningError, match="commit of me/tiny is unknown"):
                ModelSpec("me/tiny").fingerprint()
