"""Compiled models, whatever was compiled and when (pytorch/pytorch#117758, huggingface/transformers#36484).

A report says what happened: tokens, logits and the report are those of the model that is not compiled.
"""

from types import MethodType

import pytest
import torch
from transformers import CompileConfig

import feathervlm
import tiny_models as tiny
from feathervlm import Unprunable, UnprunedWarning
from laws import generate
from method_cases import in_gate, selected

ONE = tiny.batch(tiny.prompt(1, seed=1))
RAGGED = tiny.batch(tiny.prompt(1, seed=1), tiny.prompt(2, seed=2), tiny.prompt(0, seed=3))
METHOD = "feather:layers=2+4,keep=0.4"
METHODS = [METHOD, "visionzip", "tome", f"{METHOD},leave=freeze"]
CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture
def model():
    torch._dynamo.reset()
    return tiny.llava()


def logits(model, method=METHOD, inputs=ONE):
    with torch.no_grad():
        if method is None:
            return model(**inputs).logits
        with feathervlm.prune(model, method) as pruning:
            result = model(**inputs).logits
            assert pruning.report.pruned
            return result


def compiled(part):
    return torch.compile(part, backend="eager")


def compile_module(model):
    return compiled(model)


def compile_in_place(model):
    model.compile(backend="eager")
    return model


def compile_decoder(model):
    model.model.language_model = compiled(model.model.language_model)
    return model


def compile_layers(model):
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    return model


def compile_wrapped_layers(model):
    layers = model.model.language_model.layers
    for index, layer in enumerate(layers):
        layers[index] = compiled(layer)
    return model


def compile_forward(model):
    model.model.language_model.forward = compiled(model.model.language_model.forward)
    return model


def compile_bound_method(model):
    decoder = model.model.language_model
    decoder.forward = MethodType(compiled(type(decoder).forward), decoder)
    return model


def compile_encoder(model):
    model.model.vision_tower = compiled(model.model.vision_tower)
    return model


def compile_features(model):
    model.model.get_image_features = compiled(model.model.get_image_features)
    return model


WAYS = [
    compile_module,
    compile_in_place,
    compile_decoder,
    compile_layers,
    compile_forward,
    compile_bound_method,
    compile_encoder,
    compile_features,
]


@pytest.mark.parametrize(
    ("way", "method"),
    selected(
        in_gate(number == 0 and way in (compile_decoder, compile_forward), way, method)
        for way in WAYS
        for number, method in enumerate(METHODS)
    ),
)
def test_what_was_compiled_and_run_before_is_pruned(model, way, method):
    expected, unpruned = logits(model, method), logits(model, None)
    model = way(model)
    torch.testing.assert_close(logits(model, None), unpruned, **CLOSE)  # makes the graphs
    torch.testing.assert_close(logits(model, method), expected, **CLOSE)
    torch.testing.assert_close(logits(model, None), unpruned, **CLOSE)


@pytest.mark.parametrize("way", selected(in_gate(way is compile_layers, way) for way in WAYS[1:]))
def test_what_is_compiled_while_it_is_pruned_is_pruned(model, way):
    expected = logits(model)
    with torch.no_grad(), feathervlm.prune(model, METHOD) as pruning:
        torch.testing.assert_close(model(**ONE).logits, expected, **CLOSE)
        model = way(model)
        torch.testing.assert_close(model(**ONE).logits, expected, **CLOSE)
        assert pruning.report.pruned


@pytest.mark.full
def test_a_graph_around_the_model_follows_the_pruning(model):
    function = compiled(lambda **inputs: model(**inputs).logits)
    expected, unpruned = logits(model), logits(model, None)
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(function(**ONE), unpruned, **CLOSE)
        with torch.no_grad(), feathervlm.prune(model, METHOD) as pruning:
            torch.testing.assert_close(function(**ONE), expected, **CLOSE)
            with pruning.disabled():
                torch.testing.assert_close(function(**ONE), unpruned, **CLOSE)


def test_a_caller_that_must_be_one_graph_is_told_why_it_cannot(model):
    function = torch.compile(lambda **inputs: model(**inputs).logits, backend="eager", fullgraph=True)
    with (
        torch.no_grad(),
        feathervlm.prune(model, METHOD),
        pytest.raises(Exception, match="feathervlm prunes the prompts"),
    ):
        function(**ONE)


@pytest.mark.full
@pytest.mark.parametrize("inputs", [ONE, RAGGED], ids=["one", "ragged"])
def test_a_compiled_step_on_a_static_cache_equals_dynamic_decoding(model, inputs):
    config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    config._compile_all_devices = True
    for method in (None, METHOD, None):
        with feathervlm.prune(model, method or "feather:layers=2+4,keep=1.0"):
            static = generate(model, inputs, cache_implementation="static", compile_config=config)[1]
            torch.testing.assert_close(static, generate(model, inputs)[1], **CLOSE)


def call_without_hooks(self, *args, **kwargs):
    return self.forward(*args, **kwargs)


def test_a_forward_that_runs_no_hooks_is_not_reported_as_pruned(model):
    for layer in model.model.language_model.layers:  # as a graph calls them that was made before
        layer.__class__ = type("Bare", (type(layer),), {"__call__": call_without_hooks})
    with torch.no_grad(), feathervlm.prune(model, METHOD), pytest.raises(Unprunable, match="ran without the hooks"):
        model(**ONE)
    with torch.no_grad(), feathervlm.prune(model, METHOD, strict=False) as pruning:
        with pytest.warns(UnprunedWarning, match="ran without the hooks"):
            model(**ONE)
        assert not pruning.report.pruned
