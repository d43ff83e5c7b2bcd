"""A picture and a video in one call, as vllm#27859 and vllm#15291 report them.

The encoder of many models runs on videos through the method for images, so each run has to be told apart.
"""

import pytest
import torch

import feathervlm
import tiny_models as tiny
from family_cases import FAMILY_CASES
from family_cases.base import PictureInput
from feathervlm import PruningError, Unprunable, UnprunedWarning, methods
from laws import hidden
from method_cases import in_gate, selected

BOTH = [name for name in FAMILY_CASES if f"{name}-video" in FAMILY_CASES]
ONE_PLACEHOLDER = ["glm4v", "molmo2"]
"""Models that cannot tell pictures from videos in one call, pruned or not."""
TOGETHER = [name for name in BOTH if name not in ONE_PLACEHOLDER]
PROMPTS = {
    "picture, video": [("p0", "v0")],
    "video, picture": [("v1", "p0")],
    "one each": [("p0",), ("v0",)],
    "both each": [("v0", "p1"), ("p2", "v1")],
    "more videos": [("p0", "v0"), ("v1",)],
    "more pictures": [("p0", "p1", "v0"), ("p2",)],
    "text in between": [("p0", "v1"), (), ("v2", "p1")],
}
TOKENS = 3


def sample(name: str, parts: tuple[str, ...], seed: int = 0) -> tuple[list[int], list[PictureInput]]:
    """Make a prompt with pictures ("p0") and videos ("v0") by number."""
    generator = torch.Generator().manual_seed(1000 + seed)
    cases = {"p": FAMILY_CASES[name], "v": FAMILY_CASES[f"{name}-video"]}
    ids, pictures = [1, *tiny.words(4, generator)], [cases[part[0]].picture(int(part[1])) for part in parts]
    for picture in pictures:
        ids += picture.ids + tiny.words(3, generator)
    return ids + tiny.words(6, generator), pictures


def batch(name: str, *samples: tuple[list[int], list[PictureInput]]) -> dict[str, torch.Tensor]:
    """Make the inputs, where pictures and videos are joined by themselves."""
    case, tensors = FAMILY_CASES[f"{name}-video"], {}
    for videos, kind in ((False, FAMILY_CASES[name]), (True, case)):
        parts = [[part for part in parts if ("pixel_values_videos" in part.tensors) == videos] for _, parts in samples]
        tensors |= kind.join(parts) if any(parts) else {}
    text = case.inputs(*((ids, []) for ids, _ in samples))
    return case.finish({**text, **tensors}, 0)


def run(model, inputs, tokens=0, **options):
    """Logits of the prompts, or generated tokens and their logits."""
    with torch.no_grad():
        if not tokens:
            return model(**inputs).logits
        options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, **options}
        out = model.generate(**inputs, max_new_tokens=tokens, **options)
    return out.sequences[:, -tokens:], torch.stack(out.logits, 1)


def test_every_family_that_takes_videos_is_here():
    assert {f"{name}-video" for name in BOTH} == {name for name in FAMILY_CASES if name.endswith("-video")}


@pytest.mark.parametrize(
    ("name", "kind", "tokens"),
    selected(
        in_gate((place + number) % (21 if tokens else 7) == 0, name, kind, tokens)
        for place, name in enumerate(TOGETHER)
        for number, kind in enumerate(PROMPTS)
        for tokens in (0, TOKENS)
    ),
)
def test_a_batch_equals_one_by_one_and_hidden_tokens(name, kind, tokens):
    case = FAMILY_CASES[name]
    model, method = case.model(), methods.Feather(layers=case.layers, keep=0.5, stride=2)
    samples = [sample(name, parts, seed) for seed, parts in enumerate(PROMPTS[kind])]
    inputs = batch(name, *samples)
    with feathervlm.prune(model, method) as pruning:
        results = run(model, inputs, tokens)
    report = pruning.report
    for row, one in enumerate(samples):
        with feathervlm.prune(model, method) as pruning:
            alone = run(model, batch(name, one), tokens)
        if tokens:
            assert torch.equal(alone[0][0], results[0][row])
            torch.testing.assert_close(alone[1][0], results[1][row], atol=case.tolerance, rtol=1e-3)
        else:
            torch.testing.assert_close(alone[0], results[row, -alone.shape[1] :], atol=case.tolerance, rtol=1e-3)
        if not one[1]:
            continue
        assert pruning.report.layout.pictures[0] == report.layout.pictures[row]
        frames = [max(plane.shape[0] for plane in picture) for picture in report.layout.pictures[row]]
        assert [number > 1 for number in frames] == [part[0] == "v" for part in PROMPTS[kind][row]]
        for stage, alone_stage in zip(report.stages, pruning.report.stages, strict=True):
            assert stage.kept[row].tolist() == alone_stage.kept[0].tolist()
    if tokens or case.state:
        return  # a layer that carries a state has no mask to hide a token with
    there = inputs["attention_mask"].bool()
    with hidden(model, report.layout.mask, there, report, method):
        expected = run(model, inputs)
    text = there & ~report.layout.mask
    torch.testing.assert_close(results[text], expected[text], atol=case.tolerance, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "spec"),
    selected(
        in_gate((name, spec) in (("qwen3_vl", "fastervlm"), ("perception_lm", "knn")), name, spec)
        for name in TOGETHER
        for spec in ("knn", "fastervlm")
        if name != "llava_onevision" and spec not in FAMILY_CASES[name].refuses | FAMILY_CASES[f"{name}-video"].refuses
    ),
)
@pytest.mark.parametrize("tokens", [0, 1])
def test_scores_of_the_encoder_are_those_of_each_picture_alone(name, spec, tokens):
    model, samples = FAMILY_CASES[name].model(), [sample(name, ("v0", "p0", "p1"), 1), sample(name, ("p2", "v1"), 2)]

    def scores(*prompts: tuple[list[int], list[PictureInput]]) -> list[torch.Tensor]:
        with feathervlm.prune(model, spec) as pruning:
            run(model, batch(name, *prompts), tokens)
        return pruning.report.stages[0].scores

    for (_, pictures), together in zip(samples, scores(*samples), strict=True):
        alone = [scores(([1, 5, *picture.ids, 6, 7], [picture]))[0] for picture in pictures]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["hyperclovax_vision_v2"])
@pytest.mark.parametrize("tokens", [0, 1])
def test_an_encoder_that_merges_is_reported_once_for_every_frame(name, tokens):
    model, prompt = FAMILY_CASES[name].model(), sample(name, ("v1", "p0"))
    with feathervlm.prune(model, "tome:keep=0.6") as pruning:
        run(model, batch(name, prompt), tokens)
    runs = sorted(entered[0] for entered in pruning.report.encoder_tokens)
    assert runs == [8 * 16] * 3 + [12 * 12]


@pytest.mark.parametrize("name", ["qwen3_vl", "video_llama_3"])
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"use_cache": False}])
def test_beams_and_decoding_without_a_cache_keep_the_same_tokens(name, options):
    model, samples = FAMILY_CASES[name].model(), [sample(name, ("v0", "p1"), 1), sample(name, ("p2",), 2)]
    reports = []
    for more in ({}, options):
        with feathervlm.prune(model, "uniform:layer=3,stride=2") as pruning:
            run(model, batch(name, *samples), TOKENS, **more)
        reports.append(pruning.report)
    plain, other = ([kept.tolist() for kept in report.stages[0].kept] for report in reports)
    assert other == [kept for kept in plain for _ in range(options.get("num_beams", 1))]


def test_a_model_that_no_family_knows_may_make_videos_by_its_method_for_images(monkeypatch):
    model = FAMILY_CASES["hyperclovax_vision_v2"].model()
    monkeypatch.setattr(model.config, "model_type", "future", raising=False)
    inputs = batch("hyperclovax_vision_v2", sample("hyperclovax_vision_v2", ("p0", "v1")))
    with feathervlm.prune(model, "uniform:layer=2,stride=2") as pruning:
        run(model, inputs)
    assert [planes[0].shape for planes in pruning.report.layout.pictures[0]] == [(1, 6, 6)]


@pytest.mark.parametrize("name", ONE_PLACEHOLDER)
def test_what_the_model_itself_cannot_tell_apart_is_refused(name):
    model, inputs = FAMILY_CASES[name].model(), batch(name, sample(name, ("p0",)), sample(name, ("v0",)))
    with pytest.raises(ValueError, match=r"do not match|at the same time") as unpruned:
        run(model, inputs)
    assert not isinstance(unpruned.value, PruningError)
    with feathervlm.prune(model, "uniform:layer=2"), pytest.raises(Unprunable, match="have the same placeholder"):
        run(model, inputs)
    with (
        feathervlm.prune(model, "uniform:layer=2", strict=False),
        pytest.warns(UnprunedWarning),
        pytest.raises(ValueError, match=str(unpruned.value)[:20]),
    ):
        run(model, inputs)
