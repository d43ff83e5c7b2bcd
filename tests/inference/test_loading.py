"""Loading: what does not fit is refused before weights are read, and what answers depend on."""

import json
import shutil

import pytest
import torch
import transformers as tf

from feathervlm import PruningError, embedded
from feathervlm.embedded.assets import WEIGHTS
from feathervlm.embedded.questions import BOXES
from feathervlm.families import FAMILIES
from feathervlm.inference import loading
from feathervlm.inference.loading import LoadedModel, check, describe, load
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec


def test_the_embedded_model_is_loaded_to_answer():
    loaded = load(ModelSpec())
    assert (loaded.model.dtype, loaded.model.device.type) == (torch.float32, "cpu")
    assert (loaded.boxes, loaded.embedded, loaded.settings.batch) == (BOXES, True, 40)
    assert not loaded.model.training
    wrapped = LoadedModel.of(*embedded.load())
    assert (wrapped.boxes, wrapped.settings) == (loaded.boxes, loaded.settings)


def test_a_family_writes_boxes_in_its_own_format(tiny_family):
    checked = check(ModelSpec(tiny_family("qwen2_5_vl")), ["feather", UNPRUNED, None])
    assert checked.boxes is FAMILIES["qwen2_5_vl"].boxes
    assert not checked.embedded
    assert checked.load().boxes is checked.boxes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "no/such/model"}, "There is no model directory"),
        ({"device": "abacus"}, "There is no device 'abacus'"),
        ({"dtype": "float3"}, "There is no dtype 'float3'"),
        ({"attention": "none"}, "Attention 'none' does not work here"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(PruningError, match=message):
        check(ModelSpec(**changes))


@pytest.mark.parametrize("method", ["fether", "fastv:layer=99", "feather:keep=2"])
def test_a_method_that_does_not_fit(method):
    with pytest.raises(PruningError):
        check(ModelSpec(), ["feather", method])


def test_no_weights_are_read_to_check(monkeypatch):
    monkeypatch.setattr(loading, "load_model", None)
    describe(check(ModelSpec(), ["feather", UNPRUNED, "fastv:layer=3"]))


def test_what_distinguishes_models(tmp_path, tiny_family):
    own = describe(check(ModelSpec()))
    facts = {"name": "embedded", "model_type": "llava", "embedded": True, "depth": 16, "device": "cpu"}
    facts |= {"dtype": "float32", "attention": "sdpa", "max_new_tokens": 5, "batch": 40}
    assert {key: own[key] for key in facts} == facts
    assert set(own) == {*facts, "fingerprint", "versions"}
    assert own["versions"]["transformers"] == tf.__version__
    assert json.loads(json.dumps(own)) == own
    copy = shutil.copytree(WEIGHTS, tmp_path / "copy")
    (copy / "README.md").write_text("another card")
    assert describe(check(ModelSpec(str(copy), dtype="auto"))) == own | {"name": str(copy)}
    config = copy / "processor_config.json"
    config.write_text(config.read_text().replace("128", "64"))
    assert ModelSpec(str(copy)).fingerprint() != own["fingerprint"]
    other = describe(check(ModelSpec(tiny_family("llava"))))
    assert (other["embedded"], other["depth"], other["dtype"], other["batch"]) == (False, 6, "float32", 1)


def test_missing_weights_give_a_warning(tmp_path):
    copy = shutil.copytree(WEIGHTS, tmp_path / "copy")
    model, _ = embedded.load()
    states = model.state_dict()
    del states["lm_head.weight"]
    model.save_pretrained(copy, state_dict=states)
    with pytest.warns(UserWarning, match="feathervlm found no weights for 1 tensors"):
        load(ModelSpec(str(copy)))
