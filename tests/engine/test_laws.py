"""The laws of pruning: every method, on LLaVA with several towers and text models and on a bare Llama."""

from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import LastTokenAttention, Schedule, Stage, Top, VisualLayout
from feathervlm.core import Clusters, Given, Merger, Nearest, Pool
from feathervlm.core.signals import EncoderSignal
from method_cases import KEEP_ALL, METHODS

SUBJECTS = ["llava", "llava-siglip", "llava-qwen3", "llava-mistral-sliding", "llava-phi3", "bare-llama"]
ATTENTION = ["sdpa", "eager"]
TOLERANCE = 2e-4


def planned(method):
    return method if isinstance(method, Schedule) else method.schedule()


class Subject(SimpleNamespace):
    """A model, and how to feed and prune it."""

    def inputs(self, *prompts):
        inputs = tiny.batch(*prompts)
        if self.name == "bare-llama":
            inputs.pop("pixel_values", None)
            # Ordinary words stand in for visual tokens; only the layout tells that they are.
            visual = inputs["input_ids"] == tiny.IMAGE
            place = visual.cumsum(1) + inputs["input_ids"].sum(1, keepdim=True)
            inputs["input_ids"] = torch.where(visual, 5 + (place * 37) % 240, inputs["input_ids"])
        return inputs

    def prune(self, method, *prompts):
        if self.name != "bare-llama":
            return feathervlm.prune(self.model, method)
        schedule = planned(method)
        if schedule.encoder or any(isinstance(signal, EncoderSignal) for signal in schedule.signals()):
            pytest.skip("a bare decoder has no vision encoder to look into")
        mask = tiny.batch(*prompts)["input_ids"] == tiny.IMAGE
        runs = [prompt.count(tiny.IMAGE) // tiny.SIDE**2 for prompt in prompts]
        layout = VisualLayout(mask, [[(1, tiny.SIDE, tiny.SIDE)] * run for run in runs])
        return feathervlm.prune(self.model, method, layout=layout)

    def generate(self, *prompts, tokens=6):
        out = self.model.generate(
            **self.inputs(*prompts),
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return out.sequences[:, -tokens:], torch.stack(out.logits, 1)


@cache
def subject(name, attention):
    kinds = {
        "llava": lambda: tiny.llava("llama", attention=attention),
        "llava-siglip": lambda: tiny.llava("llama", tower="siglip", attention=attention, seed=1),
        "llava-qwen3": lambda: tiny.llava("qwen3", attention=attention),
        "llava-mistral-sliding": lambda: tiny.llava("mistral", attention=attention),
        "llava-phi3": lambda: tiny.llava("phi3", attention=attention),
        "bare-llama": lambda: tiny.llama(attention=attention),
    }
    return Subject(name=name, model=kinds[name]())


@pytest.fixture(params=SUBJECTS)
def name(request):
    return request.param


@pytest.fixture(params=ATTENTION)
def attention(request):
    return request.param


def went(report):
    """Return for every stage and sample the token that each entering token went to; None where nothing merges."""
    entered = None
    for stage in report.stages:
        groups = stage.groups and [groups.tolist() for groups in stage.groups]
        names = entered or [range(len(sample)) for sample in groups or []]
        yield groups and [dict(zip(*each, strict=True)) for each in zip(names, groups, strict=True)]
        entered = [kept.tolist() for kept in stage.kept]


@dataclass(frozen=True, eq=False)
class Went(Merger):
    """Merge as a report says, for mergers that depend on the text, which more text would change."""

    where: list

    def targets(self, tokens, kept):
        found = torch.full(kept.shape, -1)
        for row, groups in zip(found, self.where, strict=True):
            for token, target in groups.items():
                row[token] = target
        return found


def frozen(report, method):
    """Return the schedule that keeps the tokens that a report says were kept."""
    stages = []
    for done, stage, groups in zip(report.stages, method.schedule().stages, went(report), strict=True):
        merge = Went(groups) if isinstance(stage.merge, Clusters) else stage.merge
        stages.append(replace(stage, at=done.layer, select=Given(done.kept), merge=merge))
    return Schedule(*stages, encoder=method.schedule().encoder)


def encoded(model, inputs):
    """Return the inputs with features in place of pixels."""
    others = {key: value for key, value in inputs.items() if key != "pixel_values"}
    features = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
    return {**others, "mm_encoder_outputs": {"image": features}}


def exchanged(places, seed):
    """Return where each visual token of a sample goes if those of every image exchange places at random."""
    draws = torch.rand(len(places), generator=torch.Generator().manual_seed(seed)).tolist()
    taken = list(places)
    for start in range(0, len(places), tiny.SIDE**2):
        image = range(start, start + tiny.SIDE**2)
        for place, token in zip(image, sorted(image, key=lambda token: draws[token]), strict=True):
            taken[token] = places[place]
    return taken


def pooled(states, places, stride):
    """Return the states of a sample with the mean of every block in place of its first cell, image by image."""
    side, states = tiny.SIDE, states.clone()
    for start in range(0, len(places), side**2):
        image = torch.tensor(places[start : start + side**2])
        blocks = states[image].T.reshape(1, -1, side, side)
        means = torch.nn.functional.avg_pool2d(blocks, stride, ceil_mode=True)[0].flatten(1).T
        states[image.view(side, side)[::stride, ::stride].flatten()] = means
    return states


def gathered(states, places, groups, onto):
    """Return the states of a sample with the mean of every group in place of its kept token, or added to it."""
    states, members = states.clone(), {}
    for token, target in groups.items():
        if target >= 0 and target != token:
            members.setdefault(target, []).append(places[token])
    for target, others in members.items():
        own, mean = states[places[target]].clone(), states[others].mean(0)
        states[places[target]] = own + mean if onto else (own + len(others) * mean) / (len(others) + 1)
    return states


def hide(model, prompts, report, method, answer=None):
    """Hook the unpruned model to ignore dropped tokens, and to move positions or merge where the method does.

    Where a stage cuts the caches of the layers before it, these ignore them from position `answer` on.
    """
    attended = tiny.batch(*prompts)["attention_mask"].bool()
    visual = tiny.batch(*prompts)["input_ids"] == tiny.IMAGE
    decoder = model.get_decoder()
    hidden, merged, moved, cut = {}, {}, {}, []
    for stage, planned, groups in zip(report.stages, method.schedule().stages, went(report), strict=True):
        dropped = visual.clone()
        for sample, kept in enumerate(stage.kept):
            dropped[sample, visual[sample].nonzero()[:, 0][kept]] = False
        hidden[stage.layer] = dropped
        if planned.cache == "all" and answer is not None:
            cut.append(stage.layer)
        if planned.positions == "renumber":
            shift = dropped.long().cumsum(1)
            moved[stage.layer] = lambda ids, shift=shift: ids - shift
        elif planned.positions == "shuffle":
            places = torch.arange(visual.shape[1]).repeat(len(visual), 1)
            for sample, row in enumerate(visual):
                images = row.nonzero()[:, 0].tolist()
                places[sample, images] = torch.tensor(exchanged(images, planned.seed), dtype=torch.long)
            moved[stage.layer] = lambda ids, places=places: ids.expand_as(places).gather(1, places)
        if isinstance(planned.merge, Pool):
            stride = planned.merge.stride
            merged[stage.layer] = lambda sample, states, places, stride=stride: pooled(states, places, stride)
        elif isinstance(planned.merge, Nearest | Clusters):
            onto = getattr(planned.merge, "form", "mean") == "onto"
            merged[stage.layer] = lambda sample, states, places, groups=groups, onto=onto: gathered(
                states, places, groups[sample], onto
            )
        elif planned.merge is not None:
            pytest.skip("a token goes into several here; tests/methods/test_encoder_methods.py does so by hand")

    def mask_from(index):
        def hook(module, args, kwargs):
            layer = max((at for at in hidden if at <= index), default=None)
            later = max((at for at in cut if at > index), default=None)
            if layer is None and later is None:
                return None
            rows = torch.arange(attended.shape[1])
            ignored = (torch.zeros_like(visual) if layer is None else hidden[layer])[:, None]
            if later is not None:
                ignored = ignored | hidden[later][:, None] & (rows >= answer)[:, None]
            mask = kwargs["attention_mask"]
            allowed = rows[:, None] >= rows[None, :] if mask is None else mask
            allowed = allowed if allowed.dtype == torch.bool else allowed == 0
            # A hidden token still sees itself: its own state is never read, but must stay finite.
            allowed = allowed & (~ignored & attended[:, None])[:, None] | torch.eye(len(rows), dtype=torch.bool)
            if model.config.get_text_config()._attn_implementation == "eager":
                allowed = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
            kwargs = {**kwargs, "attention_mask": allowed}
            move = moved.get(max((at for at in moved if at <= index), default=None))
            if move is not None:
                tables = decoder.rotary_emb(args[0], position_ids=move(kwargs["position_ids"]))
                kwargs["position_embeddings"] = tables
            if index in merged:
                places = [row.nonzero()[:, 0].tolist() for row in visual]
                states = [merged[index](i, *each) for i, each in enumerate(zip(args[0], places, strict=True))]
                args = (torch.stack(states), *args[1:])
            return args, kwargs

        return hook

    layers = enumerate(decoder.layers)
    return [layer.register_forward_pre_hook(mask_from(index), with_kwargs=True) for index, layer in layers]


@pytest.mark.parametrize("method", KEEP_ALL)
def test_keeping_everything_changes_no_bit(name, attention, method):
    s, prompts = subject(name, attention), (tiny.prompt(1, seed=1), tiny.prompt(2, seed=2))
    inputs = s.inputs(*prompts)
    plain, (tokens, _) = s.model(**inputs).logits, s.generate(*prompts)
    with s.prune(KEEP_ALL[method], *prompts) as pruning:
        assert torch.equal(s.model(**inputs).logits, plain)
        assert [len(kept) for kept in pruning.report.stages[-1].kept] == [tiny.SIDE**2, 2 * tiny.SIDE**2]
        assert torch.equal(s.generate(*prompts)[0], tokens)


@pytest.mark.parametrize("method", METHODS)
def test_pruned_output_differs(name, method):
    s, prompt = subject(name, "sdpa"), tiny.prompt(1, seed=3)
    plain = s.model(**s.inputs(prompt)).logits[:, -1]
    with s.prune(METHODS[method], prompt):
        assert (s.model(**s.inputs(prompt)).logits[:, -1] - plain).abs().max() > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_cached_decoding_equals_a_full_prefill_with_the_same_tokens(name, attention, method):
    s, prompt = subject(name, attention), tiny.prompt(2, seed=4)
    with s.prune(METHODS[method], prompt) as pruning:
        tokens, logits = s.generate(prompt)
    whole = prompt + tokens[0, :-1].tolist()
    inputs = s.inputs(prompt)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens[:, :-1]], 1)
    inputs["attention_mask"] = torch.ones(1, len(whole), dtype=torch.long)
    if any(stage.cache == "all" for stage in METHODS[method].schedule()):
        # A full prefill lets early layers see what was dropped; a mask that hides it from the answer alone does not.
        handles = hide(s.model, [whole], pruning.report, METHODS[method], answer=len(prompt))
        try:
            again = s.model(**inputs).logits[:, len(prompt) - 1 :]
        finally:
            for handle in handles:
                handle.remove()
    else:
        with s.prune(frozen(pruning.report, METHODS[method]), prompt):
            again = s.model(**inputs).logits[:, len(prompt) - 1 :]
    torch.testing.assert_close(logits, again, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_ragged_batch_equals_one_by_one(name, attention, method):
    s = subject(name, attention)
    prompts = [tiny.prompt(images, seed=seed, after=4 + seed) for seed, images in enumerate((1, 2, 0, 1))]
    with s.prune(METHODS[method], *prompts) as together:
        tokens, logits = s.generate(*prompts)
    for row, prompt in enumerate(prompts):
        with s.prune(METHODS[method], prompt) as alone:
            single_tokens, single_logits = s.generate(prompt)
        torch.testing.assert_close(logits[row : row + 1], single_logits, atol=TOLERANCE, rtol=0)
        assert torch.equal(tokens[row : row + 1], single_tokens)
        if tiny.IMAGE in prompt:
            for one, many in zip(alone.report.stages, together.report.stages, strict=True):
                assert one.kept[0].tolist() == many.kept[row].tolist()
        else:
            assert not alone.report.pruned
            assert [stage.kept[row].tolist() for stage in together.report.stages] == [[]] * len(together.report.stages)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", METHODS)
def test_pruning_equals_hiding_the_dropped_tokens(name, attention, method, seed):
    s = subject(name, attention)
    prompts = [tiny.prompt(1, seed=seed), tiny.prompt(2, seed=seed + 50, after=3)][: 1 + seed % 2]
    inputs = s.inputs(*prompts)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with s.prune(METHODS[method], *prompts) as pruning:
        pruned = s.model(**inputs).logits[:, -3:]
        if METHODS[method].schedule().encoder:  # the unpruned model gets what the encoder makes of the pictures here
            inputs = encoded(s.model, inputs)
    handles = hide(s.model, prompts, pruning.report, METHODS[method])
    try:
        dense = s.model(**inputs).logits[:, -3:]
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(pruned, dense, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("layer", ["K-1", "K"])
@pytest.mark.parametrize("over", ["visual", "all"])
@pytest.mark.parametrize("text", ["llama", "qwen3", "phi3", "mistral"])
def test_scores_equal_eager_attention(text, over, layer):
    model = tiny.llava(text, attention="eager", **({"sliding_window": 512} if text == "mistral" else {}))
    prompts = [tiny.prompt(1, seed=5), tiny.prompt(2, seed=6)]
    inputs = tiny.batch(*prompts)
    attentions = model(**inputs, output_attentions=True).attentions[2 if layer == "K-1" else 3]
    with feathervlm.prune(model, Schedule(Stage(3, Top(LastTokenAttention(over=over, layer=layer), 0.3)))) as pruning:
        model(**inputs)
    for row, ids in enumerate(inputs["input_ids"]):
        expected = attentions[row, :, -1, ids == tiny.IMAGE]
        if over == "visual":
            expected = expected / expected.sum(-1, keepdim=True)
        scores = pruning.report.stages[0].scores[row]
        torch.testing.assert_close(scores, expected.mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rope", [False, True])
def test_only_rope_scores_move_with_visual_positions(rope):
    s, prompt = subject("llava", "sdpa"), tiny.prompt(1, seed=7)
    inputs = s.inputs(prompt)
    straight = torch.arange(len(prompt))
    visual = inputs["input_ids"][0] == tiny.IMAGE
    shuffled = straight.clone()
    shuffled[visual] = straight[visual][torch.randperm(int(visual.sum()), generator=torch.Generator().manual_seed(0))]
    scores = []
    # The layer before the stage is the first, whose input holds no position yet: the hidden state is fixed.
    with s.prune(Schedule(Stage(1, Top(LastTokenAttention(rope=rope), 0.3))), prompt) as pruning:
        for positions in (straight, shuffled):
            s.model(**inputs, position_ids=positions[None])
            scores.append(pruning.report.stages[0].scores[0])
    if rope:
        assert (scores[0] - scores[1]).abs().max() > 1e-3
    else:
        assert torch.equal(*scores)


@pytest.mark.parametrize("seed", range(3))
def test_feather_on_729_tokens_keeps_the_known_counts(seed):
    model = tiny.llama(seed=seed)
    mask = torch.zeros(1, 740, dtype=torch.bool)
    mask[:, 1:730] = True
    embeds = torch.randn(1, 740, 64, generator=torch.Generator().manual_seed(seed))
    method, layout = feathervlm.methods.Feather(layers=(2, 4)), VisualLayout(mask, [[(1, 27, 27)]])
    with torch.no_grad(), feathervlm.prune(model, method, layout=layout) as pruning:
        model(inputs_embeds=embeds)
    first, second = (stage.kept[0].tolist() for stage in pruning.report.stages)
    grid = {27 * row + col for row in range(0, 27, 3) for col in range(0, 27, 3)}
    assert 218 <= len(first) <= 299
    assert grid <= set(first)
    assert len(grid) == 81
    assert len(second) == int(0.09 * len(first))
    assert set(second) <= set(first)
    assert first == sorted(first)


def traces(model):
    """Return everything that pruning could leave on a model."""
    return [
        (type(part), sorted(part.__dict__), len(part._forward_pre_hooks), len(part._forward_hooks))
        for part in model.modules()
    ]


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_untouched_afterwards(name, method):
    s, prompt = subject(name, "sdpa"), tiny.prompt(1, seed=8)
    before, plain = traces(s.model), s.model(**s.inputs(prompt)).logits
    with s.prune(METHODS[method], prompt):
        s.generate(prompt)
    assert traces(s.model) == before
    broken = s.model.get_decoder().layers[-1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), s.prune(METHODS[method], prompt):
        s.generate(prompt)
    broken.remove()
    assert traces(s.model) == before
    pruning = s.prune(METHODS[method], prompt)
    s.generate(prompt)
    pruning.remove()
    assert traces(s.model) == before
    assert torch.equal(s.model(**s.inputs(prompt)).logits, plain)


def test_knn_reads_the_vision_tower_in_both_calling_ways():
    s, prompts = subject("llava", "sdpa"), (tiny.prompt(1, seed=9), tiny.prompt(2, seed=10))
    method = feathervlm.methods.KNN(layer=2, count=7)
    with s.prune(method, *prompts) as pruning:
        s.model(**s.inputs(*prompts))
        direct = pruning.report
        s.generate(*prompts)
        for a, b in zip(direct.stages[0].kept, pruning.report.stages[0].kept, strict=True):
            assert a.tolist() == b.tolist()
        assert torch.allclose(direct.stages[0].scores[1], pruning.report.stages[0].scores[1])
    assert [len(kept) for kept in direct.stages[0].kept] == [7, 14]
