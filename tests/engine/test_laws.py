"""The laws of pruning: every method, on LLaVA with several towers and text models and on a bare Llama."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import LastTokenAttention, Schedule, Stage, Top, VisualLayout
from feathervlm.core.signals import EncoderSignal
from laws import TOLERANCE, frozen, hidden, planned, traces
from method_cases import KEEP_ALL, METHODS, pairs

SUBJECTS = ["llava", "llava-siglip", "llava-qwen3", "llava-mistral-sliding", "llava-phi3", "bare-llama"]
ATTENTION = ["sdpa", "eager"]


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

    def generate(self, *prompts, tokens=4):
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


def encoded(model, inputs):
    """Return the inputs with features in place of pixels."""
    others = {key: value for key, value in inputs.items() if key != "pixel_values"}
    features = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
    return {**others, "mm_encoder_outputs": {"image": features}}


PROMPTS = (tiny.prompt(1, seed=1), tiny.prompt(2, seed=2))


@cache
def unpruned(name, attention):
    """Logits of the prompts, and the tokens that follow them."""
    s = subject(name, attention)
    return s.model(**s.inputs(*PROMPTS)).logits, s.generate(*PROMPTS)[0]


@pytest.mark.parametrize(("name", "attention", "method"), pairs(KEEP_ALL, SUBJECTS, ATTENTION))
def test_keeping_everything_changes_no_bit(name, attention, method):
    s, prompts = subject(name, attention), PROMPTS
    inputs = s.inputs(*prompts)
    plain, tokens = unpruned(name, attention)
    with s.prune(KEEP_ALL[method], *prompts) as pruning:
        assert torch.equal(s.model(**inputs).logits, plain)
        assert [len(kept) for kept in pruning.report.stages[-1].kept] == [tiny.SIDE**2, 2 * tiny.SIDE**2]
        assert torch.equal(s.generate(*prompts)[0], tokens)


@pytest.mark.parametrize(("name", "method"), pairs(METHODS, SUBJECTS))
def test_pruned_output_differs(name, method):
    s, prompt = subject(name, "sdpa"), tiny.prompt(1, seed=3)
    plain = s.model(**s.inputs(prompt)).logits[:, -1]
    with s.prune(METHODS[method], prompt):
        assert (s.model(**s.inputs(prompt)).logits[:, -1] - plain).abs().max() > 0.05


@pytest.mark.parametrize(("name", "attention", "method"), pairs(METHODS, SUBJECTS, ATTENTION))
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
        visual, attended = tiny.batch(whole)["input_ids"] == tiny.IMAGE, inputs["attention_mask"]
        with hidden(s.model, visual, attended, pruning.report, METHODS[method], answer=len(prompt)):
            again = s.model(**inputs).logits[:, len(prompt) - 1 :]
    else:
        with s.prune(frozen(METHODS[method], pruning.report), prompt):
            again = s.model(**inputs).logits[:, len(prompt) - 1 :]
    torch.testing.assert_close(logits, again, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("name", "attention", "method"), pairs(METHODS, SUBJECTS, ATTENTION))
def test_a_ragged_batch_equals_one_by_one(name, attention, method):
    s = subject(name, attention)
    prompts = [tiny.prompt(images, seed=seed, after=4 + seed) for seed, images in enumerate((1, 2, 0))]
    with s.prune(METHODS[method], *prompts) as together:
        tokens, logits = s.generate(*prompts, tokens=3)
    for row, prompt in enumerate(prompts):
        with s.prune(METHODS[method], prompt) as alone:
            single_tokens, single_logits = s.generate(prompt, tokens=3)
        torch.testing.assert_close(logits[row : row + 1], single_logits, atol=TOLERANCE, rtol=0)
        assert torch.equal(tokens[row : row + 1], single_tokens)
        if tiny.IMAGE in prompt:
            for one, many in zip(alone.report.stages, together.report.stages, strict=True):
                assert one.kept[0].tolist() == many.kept[row].tolist()
        else:
            assert not alone.report.pruned
            assert [stage.kept[row].tolist() for stage in together.report.stages] == [[]] * len(together.report.stages)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.full) for seed in (0, 2, 3))])
@pytest.mark.parametrize(("name", "attention", "method"), pairs(METHODS, SUBJECTS, ATTENTION))
def test_pruning_equals_hiding_the_dropped_tokens(name, attention, method, seed):
    s = subject(name, attention)
    prompts = [tiny.prompt(1, seed=seed), tiny.prompt(2, seed=seed + 50, after=3)][: 1 + seed % 2]
    inputs = s.inputs(*prompts)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with s.prune(METHODS[method], *prompts) as pruning:
        pruned = s.model(**inputs).logits[:, -3:]
        if METHODS[method].schedule().encoder:  # the unpruned model gets what the encoder makes of the pictures here
            inputs = encoded(s.model, inputs)
    visual = tiny.batch(*prompts)["input_ids"] == tiny.IMAGE
    with hidden(s.model, visual, inputs["attention_mask"], pruning.report, METHODS[method]):
        dense = s.model(**inputs).logits[:, -3:]
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


@pytest.mark.parametrize(("name", "method"), pairs(METHODS, SUBJECTS))
def test_the_model_is_untouched_afterwards(name, method):
    s, prompt = subject(name, "sdpa"), tiny.prompt(1, seed=8)
    before, plain = traces(s.model), s.model(**s.inputs(prompt)).logits
    with s.prune(METHODS[method], prompt):
        s.generate(prompt, tokens=2)
    assert traces(s.model) == before
    assert torch.equal(s.model(**s.inputs(prompt)).logits, plain)
    broken = s.model.get_decoder().layers[-1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), s.prune(METHODS[method], prompt):
        s.model(**s.inputs(prompt))
    broken.remove()
    assert traces(s.model) == before
    pruning = s.prune(METHODS[method], prompt)
    s.model(**s.inputs(prompt))
    pruning.remove()
    assert traces(s.model) == before


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
