"""Models whose parts are in different places (huggingface/transformers#35031, open-compass/VLMEvalKit#546,
QwenLM/Qwen3-VL#2049): dispatched by accelerate to memory and disk, or spread over two devices.

Tokens, logits and reports are those of the model in one place.
"""

import copy
import re

import pytest
import torch
from accelerate import dispatch_model

import feathervlm
from family_cases import FAMILY_CASES
from feathervlm.engine.decoder import DecoderView
from method_cases import METHODS, in_gate, representatives, selected
from two_devices import FIRST, SECOND, on, two_devices

ENCODERS = {"vision_tower", "visual", "vision_model", "vision_encoder", "connector", "embed_vision"}
ENCODERS |= {"multi_modal_projector", "vision_embed_tokens"}
READ_THE_ENCODER = [name for name in METHODS if any(s.in_encoder for s in METHODS[name].schedule().signals())]
TOKENS = 2


def run(model, inputs, tokens=0):
    with torch.no_grad():
        if not tokens:
            return model(**inputs).logits
        options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        return torch.stack(model.generate(**inputs, max_new_tokens=tokens, **options).logits, 1)


def pruned(model, inputs, method, tokens):
    with feathervlm.prune(model, method) as pruning:
        logits = run(model, inputs, tokens)
        return logits, {**pruning.report.to_dict(), "selection_seconds": None}


def names_of(model):
    return {id(module): name for name, module in model.named_modules()}


def dispatched(model, folder):
    """Return a copy of a model with every second layer and the head on disk, and the rest in memory."""
    model = copy.deepcopy(model)
    names = names_of(model)
    places = {names[id(layer)]: "disk" if at % 2 else "cpu" for at, layer in enumerate(DecoderView(model).layers)}
    for name in names.values():
        if name and not any(f"{name}.".startswith(f"{known}.") or known.startswith(f"{name}.") for known in places):
            places[name] = "cpu"
    for name, _ in model.named_parameters():
        if not any(name.startswith(f"{known}.") for known in places):
            places[name] = "cpu"
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder)


def later_parts(model, layer, encoder):
    """Return the names of what lies on the second device: the layers from this one on, and that part of the encoder.

    Args:
        model: The model.
        layer: Index of the first of these layers.
        encoder: The part of the encoder: "none", "later" layers, or "all".
    """
    names, decoder = names_of(model), DecoderView(model).decoder
    parts = {names[id(part)] for part in list(decoder.layers)[layer:]} | {"lm_head"}
    own = [f"{names[id(decoder)]}.{name}" for name, _ in decoder.named_children()]
    parts |= {name for name in own if name.split(".")[-1].startswith("rotary") or name.endswith(".norm")}
    own = {name for name in names.values() if encoder == "all" and name.split(".")[-1] in ENCODERS}
    later = re.compile(rf".*({'|'.join(ENCODERS)})\..*(layers|blocks)\.[1-9]\d*")
    return parts | own | {name for name in names.values() if encoder == "later" and later.fullmatch(name)}


CASES = selected(
    in_gate(name == "llava" or (place % 9 == 0 and row == "feather"), name, row)
    for place, name in enumerate(FAMILY_CASES)
    for row in ("feather", *READ_THE_ENCODER)
    if row not in FAMILY_CASES[name].refuses
)


@pytest.mark.parametrize(("name", "row"), CASES)
@pytest.mark.parametrize("tokens", [0, TOKENS])
def test_a_dispatched_model_equals_the_model_in_one_place(name, row, tokens, tmp_path):
    case = FAMILY_CASES[name]
    model, inputs = case.model(), case.inputs(*case.prompts())
    expected, report = pruned(model, inputs, METHODS[row], tokens)
    logits, other = pruned(dispatched(model, tmp_path), inputs, METHODS[row], tokens)
    assert torch.equal(logits, expected)
    assert other == report


SPREAD = selected(
    in_gate(
        (name == "llava" and row in representatives() and encoder == ("later" if row in READ_THE_ENCODER else "none"))
        or (row == "feather" and encoder == "all" and (name == "llava" or place % 12 == 4)),
        name,
        row,
        encoder,
    )
    for place, name in enumerate(FAMILY_CASES)
    for row in METHODS
    for encoder in ("none", "later", "all")
    if row not in FAMILY_CASES[name].refuses
)


def skip_if_unpruned_fails(model, parts, inputs):
    with two_devices(model, parts) as spread:
        try:
            run(spread, on(FIRST, inputs), TOKENS)
        except RuntimeError as error:
            pytest.skip(f"unpruned, too: {error}")


@pytest.mark.parametrize(("name", "row", "encoder"), SPREAD)
def test_a_model_on_two_devices_equals_the_model_on_one(name, row, encoder):
    case = FAMILY_CASES[name]
    model, inputs = case.model(), case.inputs(*case.prompts())
    parts = later_parts(model, 3, encoder)
    expected, report = pruned(model, inputs, METHODS[row], TOKENS)
    with two_devices(model, parts) as spread:
        try:
            logits, other = pruned(spread, on(FIRST, inputs), METHODS[row], TOKENS)
        except RuntimeError:
            skip_if_unpruned_fails(model, parts, inputs)
            raise
    assert torch.equal(logits, expected)
    assert other == report


def test_the_stand_in_refuses_to_mix_devices():
    one, other = (on(device, torch.ones(2)) for device in (FIRST, SECOND))
    model = torch.nn.Linear(2, 2)
    model._skip_keys_device_placement = []
    with two_devices(model, set()), pytest.raises(RuntimeError, match="was given tensors of"):
        one + other
