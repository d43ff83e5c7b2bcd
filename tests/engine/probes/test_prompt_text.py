"""Keys, hidden states and text as criteria read them, against the model's own modules, in any batch."""

from dataclasses import dataclass, field

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import feathervlm
import tiny_models as tiny
from feathervlm import Grid, PruningError, Schedule, Stage, Top, VisualLayout
from feathervlm.core import Criterion
from feathervlm.core.signals import Features, IsText, Keys, LayerStates, Text
from laws import layout_of

HIDDEN, PROJECTED = Features("hidden"), Features("projected")
KEYS = [Keys(layer, rope) for layer in ("K-1", "K") for rope in (False, True)]
VECTORS = [HIDDEN, PROJECTED, *KEYS]
STATES = [LayerStates("entry"), LayerStates("middle")]
FLAGS = [IsText("all"), IsText("question")]
AT = 3


@dataclass(frozen=True)
class Probe(Criterion):
    """Records the signals that it reads."""

    wanted: tuple
    seen: dict = field(default_factory=dict, compare=False)

    def signals(self):
        return self.wanted

    def score(self, tokens):
        self.seen.update({signal: tokens.signals.read(signal) for signal in self.wanted}, present=tokens.present)
        return torch.zeros(tokens.present.shape)


def read(model, *prompts, side="left", before=(), at=AT, layout=None):
    """Return the signals read at a stage before layer `at`, and the report."""
    probe = Probe((*VECTORS, *STATES, *map(Text, VECTORS), *FLAGS))
    inputs = tiny.batch(*prompts, side=side)
    with torch.no_grad(), feathervlm.prune(model, Schedule(*before, Stage(at, Top(probe, 0.5))), layout=layout) as held:
        model(**inputs)
    return probe.seen, held.report


def dense(model, prompt, start=0, at=AT):
    """Return the vectors of every token of a prompt at positions from `start` on, from hooks on the unpruned model."""
    text, kept, positions = model.get_decoder(), {}, torch.arange(start, start + len(prompt))[None]

    def states(name):
        def hook(module, args, kwargs):
            kept[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    def output(name):
        def hook(module, args, out):
            kept[name] = out

        return hook

    handles = [text.layers[at].register_forward_pre_hook(states("hidden"), with_kwargs=True)]
    handles.append(text.layers[at - 1].register_forward_pre_hook(states("entry"), with_kwargs=True))
    handles.append(text.layers[at - 1].post_attention_layernorm.register_forward_hook(output("middle")))
    handles.append(text.layers[0].register_forward_pre_hook(states("embedded"), with_kwargs=True))
    for name, layer in (("K-1", at - 1), ("K", at)):
        handles.append(text.layers[layer].self_attn.k_proj.register_forward_hook(output(name)))
    with torch.no_grad():
        model(**tiny.batch(prompt), position_ids=positions)
    for handle in handles:
        handle.remove()
    found = {HIDDEN: kept["hidden"], PROJECTED: kept["embedded"]}
    found |= {LayerStates(point): kept[point] for point in ("entry", "middle")}
    for signal in KEYS:
        by_head = kept[signal.layer].unflatten(-1, (-1, 16)).transpose(1, 2)
        if signal.rope:
            tables = text.rotary_emb(by_head, positions)
            by_head = apply_rotary_pos_emb(by_head, by_head, *tables)[1]
        found[signal] = by_head.transpose(1, 2).flatten(2)
    return {signal: value[0] for signal, value in found.items()}


def text_of(prompt):
    """Return the positions of text tokens, and which of them follow the last image."""
    places = [i for i, token in enumerate(prompt) if token != tiny.IMAGE]
    last = max((i for i, token in enumerate(prompt) if token == tiny.IMAGE), default=-1)
    return places, [i > last for i in places]


@pytest.fixture(scope="module")
def llava():
    return tiny.llava()


PROMPTS = [tiny.prompt(1, seed=1), tiny.prompt(2, seed=2, after=3), tiny.prompt(0, seed=3)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_vectors_are_those_of_the_models_own_modules(llava, side):
    seen, _ = read(llava, *PROMPTS, side=side)
    for row, prompt in enumerate(PROMPTS):
        places, behind = text_of(prompt)
        visual = [i for i, token in enumerate(prompt) if token == tiny.IMAGE]
        padding = max(map(len, PROMPTS)) - len(prompt) if side == "left" else 0  # which a plain forward counts
        everything, here = dense(llava, prompt, padding), seen[IsText("all")][row]
        assert here.tolist() == [True] * len(places) + [False] * (len(here) - len(places))
        assert seen[IsText("question")][row][here].tolist() == behind
        for signal, expected in everything.items():
            torch.testing.assert_close(seen[signal][row, : len(visual)], expected[visual], atol=1e-4, rtol=1e-4)
        for signal in VECTORS:
            expected = everything[signal][places]
            torch.testing.assert_close(seen[Text(signal)][row][here], expected, atol=1e-4, rtol=1e-4)


def test_vectors_follow_the_rows_when_an_earlier_stage_has_dropped_some(llava):
    prompt = PROMPTS[1]
    places, _ = text_of(prompt)
    projections = []
    projection = llava.get_decoder().layers[AT - 1].self_attn.k_proj
    handle = projection.register_forward_hook(lambda module, args, out: projections.append(out[0]))
    seen, report = read(llava, prompt, before=[Stage(1, Grid(2))])
    handle.remove()
    keys, kept = projections[0], report.stages[0].kept[0]
    visual = [i for i, token in enumerate(prompt) if token == tiny.IMAGE]
    left = sorted(places + [visual[token] for token in kept.tolist()])
    assert len(keys) == len(left) < len(prompt)
    signal = Keys("K-1", rope=False)
    assert torch.equal(seen[Text(signal)][0], keys[[left.index(place) for place in places]])
    assert torch.equal(seen[signal][0][kept], keys[[left.index(visual[token]) for token in kept.tolist()]])
    assert seen["present"][0].nonzero().flatten().tolist() == kept.tolist()


def test_text_ends_with_the_token_that_asks():
    llama, prompt = tiny.llama(), tiny.prompt(1, seed=4)
    inputs = tiny.batch(prompt)["input_ids"]
    for query in (len(prompt) - 1, len(prompt) - 3):
        found = layout_of(inputs, tiny.IMAGE, tiny.SIDE)
        layout = VisualLayout(found.mask, found.grids, torch.tensor([query]))
        probe = Probe((IsText("all"), IsText("question")))
        with torch.no_grad(), feathervlm.prune(llama, Schedule(Stage(2, Top(probe, 0.5))), layout=layout):
            llama(input_ids=inputs)
        places, behind = text_of(prompt[: query + 1])
        assert int(probe.seen[IsText("all")].sum()) == len(places)
        assert int(probe.seen[IsText("question")].sum()) == sum(behind)


def test_a_speculated_continuation_is_no_text_of_the_prompt(llava):
    prompt = PROMPTS[0]
    probe = Probe((IsText("all"),))
    with torch.no_grad(), feathervlm.prune(llava, Schedule(Stage(2, Top(probe, 0.5)))):
        llava(**tiny.batch([*prompt, 7, 8]), logits_to_keep=3)
    assert int(probe.seen[IsText("all")].sum()) == len(text_of(prompt)[0])


def test_nothing_is_measured_that_is_not_asked_for(llava):
    seen = []
    with torch.no_grad(), feathervlm.prune(llava, "fastv:layer=2") as pruning:
        handle = (
            llava.get_decoder()
            .layers[4]
            .register_forward_pre_hook(
                lambda *_: seen.append(list(pruning._hooks._state.hooks.reader.forward.recorders))
            )
        )
        llava(**tiny.batch(PROMPTS[0]))
        handle.remove()
    assert seen == [[("query and key", 1, None)]]


@pytest.mark.parametrize("signal", [Keys(), Text(Keys(rope=False))])
def test_there_is_no_layer_before_the_first(llava, signal):
    schedule = Schedule(Stage(0, Top(Probe((signal,)), 0.5)))
    with pytest.raises(PruningError, match="no layer before it"):
        feathervlm.prune(llava, schedule)


def test_text_has_no_features_of_the_vision_encoder():
    with pytest.raises(PruningError, match="Features\\(source='vision'\\)"):
        Text(Features("vision"))
