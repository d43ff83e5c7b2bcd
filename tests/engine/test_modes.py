"""Tokens that wait, are frozen, or skip a half of the layers, against the unpruned model with the same done by hand."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import feathervlm
import tiny_models as tiny
from feathervlm import Grid, LastTokenAttention, PruningError, Schedule, Stage, Top, Unprunable
from feathervlm.core import Given, KeepAll, LayerStates, Pool
from feathervlm.engine.decoder import DecoderView
from laws import OLD, TOLERANCE, frozen, generate, hidden
from method_cases import MODES, NO_ROPE, OWN, crossed

STAYS = {name: schedule for name, schedule in MODES.items() if name not in ("end", "group")}
TEXTS = ["llama", "mistral", "qwen3", "phi3"]  # a window of 24 over images of 36; norms of queries; fused projections
ATTENTION = ["sdpa", "eager"]
PROMPTS = [tiny.prompt(1, seed=1), tiny.prompt(2, seed=2, after=3), tiny.prompt(0, seed=3)]
SETTINGS = pytest.mark.parametrize(("text", "attention", "mode"), crossed(TEXTS, ATTENTION, STAYS, share=4))


@cache
def model(text="llama", attention="sdpa"):
    return tiny.llava(text, attention=attention)


def positioned(inputs):
    return {**inputs, "position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}


@SETTINGS
def test_a_mode_does_what_the_full_sequence_does_with_masks_and_states_by_hand(text, attention, mode):
    llava, inputs = model(text, attention), positioned(tiny.batch(*PROMPTS))
    with torch.no_grad(), feathervlm.prune(llava, MODES[mode]) as pruning:
        logits = llava(**inputs).logits
    visual = inputs["input_ids"] == tiny.IMAGE
    with torch.no_grad(), hidden(llava, visual, inputs["attention_mask"], pruning.report, MODES[mode]):
        expected = llava(**inputs).logits
    text_rows = ~visual & inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[text_rows], expected[text_rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("text", "attention", "mode"), crossed(TEXTS, ATTENTION, [*STAYS, "group"], share=4))
def test_a_ragged_batch_equals_one_by_one_and_decoding_equals_a_rerun(text, attention, mode):
    llava = model(text, attention)
    with feathervlm.prune(llava, MODES[mode]) as pruning:
        tokens, logits, _ = generate(llava, tiny.batch(*PROMPTS))
        for row, prompt in enumerate(PROMPTS):
            alone, steps, _ = generate(llava, tiny.batch(prompt))
            assert torch.equal(alone[0], tokens[row])
            torch.testing.assert_close(steps[0], logits[row], atol=TOLERANCE, rtol=0)
        inputs = tiny.batch(PROMPTS[0])
        new, steps, _ = generate(llava, inputs)
        report = pruning.report
    ids = torch.cat([inputs["input_ids"], new[:, :-1]], 1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), feathervlm.prune(llava, frozen(MODES[mode], report)):
        again = llava(**whole).logits[:, -new.shape[1] :]
    torch.testing.assert_close(again, steps, atol=TOLERANCE, rtol=0)


WAYS = [
    {"leave": "wait"},
    {"leave": "freeze"},
    {"leave": "freeze", "skip": "mlp"},
    {"leave": "freeze", "skip": "attention"},
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_keeping_everything_changes_no_bit(text, way):
    llava, inputs = model(text), tiny.batch(*PROMPTS)
    schedule = Schedule(Stage(1, KeepAll(), **way), Stage(3, Top(OWN, 1.0), **way))
    with torch.no_grad():
        plain = llava(**inputs).logits
        with feathervlm.prune(llava, schedule) as pruning:
            assert torch.equal(llava(**inputs).logits, plain)
        assert pruning.report.flops_ratio == pruning.report.kv_bytes_ratio == 1


@pytest.mark.parametrize(("text", "attention"), crossed(TEXTS, ATTENTION))
def test_waiting_at_the_last_stage_is_dropping_to_the_last_bit(text, attention):
    llava, inputs = model(text, attention), tiny.batch(*PROMPTS)
    found = []
    for leave in ("drop", "wait"):
        schedule = Schedule(Stage(1, Grid(2)), Stage(3, Top(NO_ROPE, 0.15), leave=leave))
        with torch.no_grad(), feathervlm.prune(llava, schedule) as pruning:
            out = llava(**inputs, output_hidden_states=True)
            report = pruning.report
            found.append((out.logits, *out.hidden_states, *generate(llava, inputs)[:2]))
            assert report.flops_ratio < 0.7
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@st.composite
def matrices(draw):
    """Stages whose tokens leave in every way, with the choice of each given: a matrix of layers and tokens."""
    layers = sorted(draw(st.permutations(range(6)))[: draw(st.integers(1, 5))])
    ways, shares = st.permutations([{"leave": "drop"}, *WAYS]), st.sampled_from([0.5, 0.8, 0.2, 0.0, 1.0])
    order = draw(ways)
    return [(layer, order[place], draw(shares), draw(st.integers(0, 99))) for place, layer in enumerate(layers)]


@given(matrices(), st.sampled_from(TEXTS))
def test_a_random_matrix_of_layers_and_tokens_is_what_the_slow_reference_makes_of_it(matrix, text):
    llava, prompts = model(text), PROMPTS[:2]
    inputs, stages = positioned(tiny.batch(*prompts)), []
    for layer, way, share, seed in matrix:
        generator = torch.Generator().manual_seed(seed)
        kept = [(torch.rand(36 * images, generator=generator) < share).nonzero()[:, 0] for images in (1, 2)]
        stages.append(Stage(layer, Given(kept), **way))
    schedule, visual = Schedule(*stages), inputs["input_ids"] == tiny.IMAGE
    with torch.no_grad(), feathervlm.prune(llava, schedule) as pruning:
        logits = llava(**inputs).logits
    with torch.no_grad(), hidden(llava, visual, inputs["attention_mask"], pruning.report, schedule):
        expected = llava(**inputs).logits
    rows = ~visual & inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[rows], expected[rows], atol=1e-5, rtol=0)


@torch.no_grad()
def grouped_by_hand(llava, inputs, first, second, groups, report):
    """Logits of one prompt, layer by layer on plain tensors: means of groups run, and members get their change."""
    view = DecoderView(llava)
    image = (inputs["input_ids"][0] == tiny.IMAGE).nonzero()[:, 0]
    length = inputs["input_ids"].shape[1]
    embeds = []
    handle = view.layers[0].register_forward_pre_hook(lambda module, args: embeds.append(args[0]))
    llava(**inputs)
    handle.remove()
    states, every = embeds[0][0], torch.arange(length)

    def run(states, rows, layers):
        tables = view.decoder.rotary_emb(states[None], position_ids=rows[None])
        mask = rows[None, :] <= rows[:, None]
        for index in layers:
            states = view.layers[index](states[None], attention_mask=mask[None, None], position_embeddings=tables)[0]
        return states

    states = run(states, every, range(first))
    kept = set(report.stages[0].kept[0].tolist())
    left = [token for token in range(len(image)) if token not in kept]
    own = states[image]
    unit = torch.nn.functional.normalize(own.double(), dim=-1)
    # Peaks: dense among as many neighbours as there are groups, and far from anything denser.
    far = torch.cdist(unit[left], unit[left]) / own.shape[1] ** 0.5
    sparsity = far.sort(1).values[:, :groups].square().mean(1)
    delta = [
        min((far[i, j] for j in range(len(left)) if sparsity[j] < sparsity[i]), default=far.max())
        for i in range(len(left))
    ]
    worth = (-sparsity).exp() * torch.stack([torch.as_tensor(d) for d in delta])
    peaks = sorted(range(len(left)), key=lambda i: -worth[i])[:groups]
    members = {peak: [] for peak in peaks}
    for i in range(len(left)):
        members[max(peaks, key=lambda peak: float(unit[left[i]] @ unit[left[peak]]))].append(left[i])
    means = {}
    for group in members.values():
        mean = own[group].mean(0)
        row = max(group, key=lambda token: float(unit[token] @ torch.nn.functional.normalize(mean.double(), dim=0)))
        means[row] = group, mean
    rows = torch.tensor(
        [place for place in every.tolist() if place not in image[left].tolist() or place in image[list(means)].tolist()]
    )
    entering = states.clone()
    for row, (_, mean) in means.items():
        entering[image[row]] = mean
    after = run(entering[rows], rows, range(first, second))
    at = {int(place): number for number, place in enumerate(rows)}
    full = states.clone()
    full[rows] = after
    for row, (group, mean) in means.items():
        for token in group:
            full[image[token]] = own[token] + after[at[int(image[row])]] - mean
    final = [int(place) for place in every if place not in image] + image[report.stages[1].kept[0]].tolist()
    rows = torch.tensor(sorted(final))
    out = run(full[rows], rows, range(second, len(view.layers)))
    return llava.lm_head(view.decoder.norm(out))[-1], sorted(means)


def test_means_of_groups_run_and_hand_their_change_on():
    llava, inputs = model(), tiny.batch(PROMPTS[0])
    with torch.no_grad(), feathervlm.prune(llava, MODES["group"]) as pruning:
        logits = llava(**inputs).logits[0, -1]
    report = pruning.report
    expected, rows = grouped_by_hand(llava, inputs, 1, 4, 4, report)
    assert report.stages[0].means[0].tolist() == rows
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert report.tokens_per_layer == [[36, 11, 11, 11, 10, 10]]
    assert report.waiting_per_layer == [[0, 29, 29, 29, 0, 0]]
    expected = MODES["group"].tokens_by_mode([(1, 6, 6)], 6)
    assert [tokens.running for tokens in expected] == report.tokens_per_layer[0]
    assert [tokens.waiting for tokens in expected] == report.waiting_per_layer[0]


def multiplied(llava, inputs):
    """FLOPs of all products with weights, as they were executed; attention multiplies batches of matrices."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        llava(**inputs)
    return sum(count for op, count in counter.get_flop_counts()["Global"].items() if op.__name__ in ("mm", "addmm"))


@pytest.mark.parametrize("text", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_matrices_run_for_as_many_rows_as_the_formula_says(text, way):
    llava, inputs = model(text), tiny.batch(PROMPTS[0])
    del inputs["attention_mask"]
    everything = multiplied(llava, inputs)
    with feathervlm.prune(llava, Schedule(Stage(2, Grid(2), **way))) as pruning:
        saved = everything - multiplied(llava, inputs)
    report = pruning.report
    assert report.frozen_per_layer[0] == [0, 0, *([27 if way["leave"] == "freeze" else 0] * 4)]
    assert report.waiting_per_layer[0] == [0, 0, *([27 if way["leave"] == "wait" else 0] * 4)]
    expected = 0
    for cost in report.record.costs[2:]:
        price = {"mlp": cost.weights - cost.mlp_weights, "attention": cost.kv_weights + cost.mlp_weights}
        frozen_price = price.get(way.get("skip"), cost.kv_weights) if way["leave"] == "freeze" else 0
        expected += 2 * 27 * (cost.weights - frozen_price)
    assert saved == expected


def test_the_report_prices_every_mode_and_counts_pairs_exactly():
    llava, inputs = model(), tiny.batch(PROMPTS[0])
    cost = DecoderView(llava).costs[0]
    length, image = inputs["input_ids"].shape[1], 5  # words before the image
    with torch.no_grad(), feathervlm.prune(llava, Schedule(Stage(2, Grid(2), leave="freeze"))) as pruning:
        llava(**inputs)
    kept = [6 * row + col for row in (0, 2, 4) for col in (0, 2, 4)]
    runs = [*range(image), *(image + place for place in kept), *range(image + 36, length)]
    read = [place for place in range(length) if place not in runs]
    pairs = sum(key <= query for query in runs for key in [*runs, *read])
    late = 2 * (cost.weights * len(runs) + cost.kv_weights * len(read)) + 4 * cost.attention_width * pairs
    whole = cost.flops(length)
    assert pruning.report.flops_ratio == (2 * whole + 4 * late) / (6 * whole)
    assert pruning.report.kv_bytes_ratio == 1
    assert pruning.report.cached_per_layer == [[36] * 6]
    assert "9, 27 frozen" in str(pruning.report)


@pytest.mark.parametrize("mode", ["freeze", "freeze-on", "wait", "no-mlp"])
def test_hidden_states_are_those_of_the_rows_that_a_layer_saw(mode):
    llava, inputs = model(), positioned(tiny.batch(*PROMPTS[:2]))
    schedule, visual = MODES[mode], inputs["input_ids"] == tiny.IMAGE
    with torch.no_grad(), feathervlm.prune(llava, schedule) as pruning:
        states = llava(**inputs, output_hidden_states=True).hidden_states
    with torch.no_grad(), hidden(llava, visual, inputs["attention_mask"], pruning.report, schedule):
        expected = llava(**inputs, output_hidden_states=True).hidden_states
    record, attended = pruning.report.record, inputs["attention_mask"].bool()
    for place in range(1, 6):  # the last is normed
        seen, stage = attended.clone(), max((i for i, s in enumerate(record.stages) if s.layer < place), default=None)
        if stage is not None:
            seen &= ~record.dropped(stage)
            assert not states[place][record.dropped(stage)].any()
        torch.testing.assert_close(states[place][seen], expected[place][seen], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["freeze-on", "wait", "no-attention"])
def test_gradients_are_those_of_the_full_sequence_with_masks_and_states_by_hand(mode):
    llava, inputs = tiny.llava("qwen3", seed=3), positioned(tiny.batch(PROMPTS[0]))
    visual = inputs["input_ids"] == tiny.IMAGE

    def gradients():
        llava.zero_grad()
        llava(**inputs).logits[:, -1].square().mean().backward()
        return {name: weight.grad for name, weight in llava.named_parameters() if weight.grad is not None}

    with feathervlm.prune(llava, MODES[mode]) as pruning:
        found = gradients()
    with hidden(llava, visual, inputs["attention_mask"], pruning.report, MODES[mode]):
        expected = gradients()
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Stage("middle", Grid(2)), "at='middle' is neither a layer nor 'end'"),
        (lambda: Stage("end", Grid(2)), "give it cache='all'"),
        (lambda: Stage(1, Grid(2), leave="away"), "leave='away' is not one of drop, wait, freeze"),
        (lambda: Stage(1, Grid(2), skip="mlp"), "skip='mlp' needs leave='freeze', not leave='drop'"),
        (lambda: Stage(1, Grid(2), leave="freeze", skip="both"), "skip='both' is not one of mlp, attention"),
        (lambda: Stage(1, Grid(2), leave="freeze", update="group"), "update='group' needs leave='wait'"),
        (lambda: Stage(1, Grid(2), leave="wait", positions="renumber"), "takes positions='preserve' only"),
        (lambda: Stage(1, Grid(2), leave="freeze", merge=Pool(2)), "takes merge=None only"),
        (lambda: Stage(1, Grid(2), leave="freeze", cache="all"), "takes cache='later' only"),
        (lambda: Schedule(Stage(1, Grid(2), leave="wait"), Stage(3, Top(NO_ROPE, 0.5))), 'layer="K"'),
        (lambda: Schedule(Stage(1, Grid(2), leave="wait"), Stage(3, Grid(3), cache="all")), "cache='all' needs keys"),
        (
            lambda: Schedule(Stage(1, Grid(2), positions="stretch"), Stage(3, Grid(3), leave="wait")),
            "keep their positions",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(make, words):
    with pytest.raises(PruningError, match=words):
        make()


def test_frozen_tokens_have_no_states_inside_a_layer():
    class Changes(LastTokenAttention):
        def signals(self):
            return (LayerStates("middle"),)

    with pytest.raises(PruningError, match="Frozen tokens have no update"):
        Schedule(Stage(1, Grid(2), leave="freeze"), Stage(3, Top(Changes(), 0.5)))


@pytest.mark.parametrize(("text", "attention"), crossed(TEXTS, ATTENTION))
def test_the_end_stage_changes_no_bit_of_the_prompt_and_hides_the_rest_from_the_answer(text, attention):
    llava, inputs = model(text, attention), tiny.batch(PROMPTS[1])
    schedule = Schedule(Stage("end", Top(LastTokenAttention(rope=False), 0.2), cache="all"))
    with torch.no_grad():
        plain = llava(**inputs, output_hidden_states=True)
        with feathervlm.prune(llava, schedule) as pruning:
            cut = llava(**inputs, output_hidden_states=True)
            new, steps, _ = generate(llava, inputs)
            report = pruning.report
    for one, other in zip([plain.logits, *plain.hidden_states], [cut.logits, *cut.hidden_states], strict=True):
        assert torch.equal(one, other)
    assert report.tokens_per_layer == [[72] * 6]
    assert report.cached_per_layer == [[14] * 6]
    assert report.flops_ratio == 1 >= report.kv_bytes_ratio  # a short window keeps no more than that
    assert torch.equal(report.row_mask, inputs["attention_mask"].bool())
    ids = torch.cat([inputs["input_ids"], new[:, :-1]], 1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    answer = inputs["input_ids"].shape[1]
    with torch.no_grad(), hidden(llava, ids == tiny.IMAGE, whole["attention_mask"], report, schedule, answer):
        again = llava(**whole).logits[:, -new.shape[1] :]
    torch.testing.assert_close(again, steps, atol=TOLERANCE, rtol=0)


def test_an_answer_in_the_same_forward_sees_what_the_end_stage_left():
    llava, inputs = model(), tiny.batch(PROMPTS[0])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    answer = labels.shape[1] - 3
    with torch.no_grad(), feathervlm.prune(llava, MODES["end"]) as pruning:
        logits = llava(**inputs, labels=labels).logits[:, answer - 1 :]
    assert pruning.report.queries == [[answer - 1]]
    visual = inputs["input_ids"] == tiny.IMAGE
    with torch.no_grad(), hidden(llava, visual, inputs["attention_mask"], pruning.report, MODES["end"], answer):
        expected = llava(**inputs).logits[:, answer - 1 :]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_the_end_has_no_layer_to_score_with():
    with pytest.raises(PruningError, match="no layer after it to score with"):
        Schedule(Stage("end", Top(OWN, 0.5), cache="all"))


class Adapter(torch.nn.Module):
    """A projection with a low-rank addition, as adapters wrap it: it has no weight of its own."""

    def __init__(self, base):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.base = base
        self.down = torch.nn.Parameter(torch.randn(4, base.in_features, generator=generator) * 0.2)
        self.up = torch.nn.Parameter(torch.randn(base.out_features, 4, generator=generator) * 0.2)

    def forward(self, states):
        return self.base(states) + states @ self.down.T @ self.up.T


class Quantized(torch.nn.Module):
    """A projection whose weight is stored in whole numbers."""

    def __init__(self, base):
        super().__init__()
        self.scale = base.weight.detach().abs().max() / 127
        self.register_buffer("packed", (base.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, states):
        return torch.nn.functional.linear(states, self.packed * self.scale)


@pytest.mark.parametrize("wrapper", [Adapter, Quantized])
@pytest.mark.parametrize("mode", ["freeze-on", "no-attention"])
def test_frozen_rows_go_through_whatever_wraps_the_projections(wrapper, mode):
    llava, inputs = tiny.llava("qwen3"), positioned(tiny.batch(*PROMPTS[:2]))
    plain = llava(**inputs).logits
    for layer in llava.get_decoder().layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(layer.self_attn, name, wrapper(getattr(layer.self_attn, name)))
    with torch.no_grad(), feathervlm.prune(llava, MODES[mode]) as pruning:
        logits = llava(**inputs).logits
    visual = inputs["input_ids"] == tiny.IMAGE
    with torch.no_grad(), hidden(llava, visual, inputs["attention_mask"], pruning.report, MODES[mode]):
        expected = llava(**inputs).logits
    assert (llava(**inputs).logits - plain).abs().max() > 1e-3
    torch.testing.assert_close(logits[:, -3:], expected[:, -3:], atol=1e-5, rtol=0)


def test_what_a_model_cannot_do_is_refused_by_name():
    freezing = Schedule(Stage(1, Grid(2), leave="freeze"))
    llava = tiny.llava("phi3")
    attention = llava.get_decoder().layers[2].self_attn
    attention.qkv_proj = type("Adapted", (torch.nn.Linear,), {})(64, 128, bias=False)
    with pytest.raises(Unprunable, match=r"Layer 2 of \w+ makes .* in a \w+\.Adapted, of which keys"):
        feathervlm.prune(llava, freezing)
    llava = tiny.llava()
    llava.set_attn_implementation("sdpa")
    llava.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(Unprunable, match="Flash attention cannot read tokens that have no query"):
        feathervlm.prune(llava, freezing)


def test_gradient_checkpointing_is_refused_with_frozen_tokens():
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[0])
    llava.gradient_checkpointing_enable() if OLD else llava.activation_checkpointing_enable()
    llava.train()
    with (
        feathervlm.prune(llava, Schedule(Stage(1, Grid(2), leave="freeze"))),
        pytest.raises(Unprunable, match="Gradient checkpointing takes the cache away"),
    ):
        llava(**inputs)
