"""Merging inside the vision encoder: tokens per layer, traces on the model, and refusals."""

import copy
import threading
from contextlib import nullcontext

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import feathervlm
import tiny_models as tiny
from family_cases import FAMILY_CASES
from feathervlm import PruningError, Schedule, Stage, Top, Unprunable, VisualLayout, methods
from feathervlm.core import Grid, KeepAll
from feathervlm.core.criteria.attention import VisionAttention
from feathervlm.core.criteria.features import KNNDensity
from feathervlm.core.encoder.bipartite import BipartiteMerging
from feathervlm.core.encoder.density_peaks import DensityPeakMerging
from feathervlm.core.scoring_pass import Survivors
from feathervlm.core.selectors.groups import OnePerGroup
from feathervlm.core.spec import from_json, to_json
from feathervlm.engine.vision.merging import EncoderMerge
from laws import OLD, traces

BOTH = [methods.ToMe(keep=0.4), methods.AiluRus(encoder_layer=1, keep=0.4)]
PROMPTS = [tiny.prompt(2, seed=1), tiny.prompt(0, seed=2), tiny.prompt(1, seed=3)]


@pytest.fixture(params=BOTH, ids=str)
def method(request):
    return request.param


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@torch.no_grad()
def test_nothing_is_left_on_the_model(tower, method):
    llava, inputs = tiny.llava(tower=tower, depth=4), tiny.batch(*PROMPTS)
    before, known = traces(llava), set(ALL_ATTENTION_FUNCTIONS)
    configs = [part.config for part in llava.model.vision_tower.modules() if hasattr(part, "config")]
    plain = llava(**inputs).logits
    with feathervlm.prune(llava, method):
        merged = llava(**inputs).logits
        inside = [part._forward_hooks for part in llava.model.vision_tower.modules()]
        llava.model.vision_tower(inputs["pixel_values"])  # outside a prompt it is unchanged
    assert not torch.equal(merged, plain)
    assert traces(llava) == before
    assert [len(hooks) for hooks in inside] == [hooks for *_, hooks in traces(llava.model.vision_tower)]
    assert set(ALL_ATTENTION_FUNCTIONS) == known
    now = [part.config for part in llava.model.vision_tower.modules() if hasattr(part, "config")]
    assert all(one is two for one, two in zip(configs, now, strict=True))
    assert torch.equal(llava(**inputs).logits, plain)


@pytest.mark.parametrize("place", ["self_attn", "layer_norm2", "mlp"])
@torch.no_grad()
def test_an_encoder_that_fails_is_put_back(method, place):
    llava, inputs = tiny.llava(depth=4), tiny.batch(*PROMPTS)
    before, known, plain = traces(llava), set(ALL_ATTENTION_FUNCTIONS), llava(**inputs).logits
    with feathervlm.prune(llava, method):
        broken = getattr(llava.model.vision_tower.encoder.layers[2], place).register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llava(**inputs)
        broken.remove()
        again = llava(**inputs).logits
    assert traces(llava) == before
    assert set(ALL_ATTENTION_FUNCTIONS) == known
    with feathervlm.prune(llava, method):
        assert torch.equal(llava(**inputs).logits, again)
    assert torch.equal(llava(**inputs).logits, plain)


@torch.no_grad()
def test_generate_merges_as_a_forward_does(method):
    llava, inputs = tiny.llava(depth=4), tiny.batch(*PROMPTS)
    with feathervlm.prune(llava, method) as pruning:
        logits, direct = llava(**inputs).logits[:, -1], pruning.report
        out = llava.generate(
            **inputs, max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        report = pruning.report
    torch.testing.assert_close(out.logits[0], logits, atol=1e-4, rtol=0)
    assert report.encoder_tokens == direct.encoder_tokens
    assert [kept.tolist() for kept in report.stages[0].kept] == [kept.tolist() for kept in direct.stages[0].kept]


@torch.no_grad()
def test_gradients_flow_through_groups(method):
    llava, inputs = tiny.llava(depth=4), tiny.batch(PROMPTS[2])
    inputs["pixel_values"].requires_grad_()
    with torch.enable_grad(), feathervlm.prune(llava, method):
        llava(**inputs).logits[0, -1].square().sum().backward()
    per_patch = inputs["pixel_values"].grad[0].unfold(1, 8, 8).unfold(2, 8, 8).abs().amax((0, 3, 4))
    assert (per_patch > 0).all()  # patches that went into others count, too


@pytest.mark.parametrize("name", ["internvl", "idefics3", "gemma3", "llava_next", "paligemma"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_other_families_keep_everything_to_the_bit_and_batches_alike(name, attention):
    case = FAMILY_CASES[name]
    model, samples = case.model(attention), case.prompts()
    inputs = case.inputs(*samples)
    plain, there = model(**inputs).logits, inputs["attention_mask"].bool()
    for whole in (methods.ToMe(keep=1.0), methods.AiluRus(encoder_layer=0, keep=1.0)):
        with feathervlm.prune(model, whole):
            assert torch.equal(model(**inputs).logits[there], plain[there])
    for some in (methods.ToMe(keep=0.6), methods.AiluRus(encoder_layer=0, keep=0.6)):
        with feathervlm.prune(model, some) as pruning:
            together, report = model(**inputs).logits, pruning.report
            for row, sample in enumerate(samples):
                alone = model(**case.inputs(sample)).logits
                torch.testing.assert_close(together[row, -alone.shape[1] :], alone[0], atol=case.tolerance, rtol=1e-3)
                if sample[1]:
                    assert pruning.report.stages[0].kept[0].tolist() == report.stages[0].kept[row].tolist()


@torch.no_grad()
def test_a_token_of_several_patches_stays_if_one_of_them_is_the_first_of_its_group():
    case = FAMILY_CASES["internvl"]
    model, inputs = case.model(), case.inputs(case.prompts()[2])
    with feathervlm.prune(model, methods.ToMe(keep=0.55)) as pruning:
        states = model.model.get_image_features(inputs["pixel_values"]).last_hidden_state[:, 1:]
        model(**inputs)
    kept = set(pruning.report.stages[0].kept[0].tolist())
    side = 12
    for tile, patches in enumerate(states):
        first = [all(not torch.equal(patch, other) for other in patches[:i]) for i, patch in enumerate(patches)]
        assert sum(first) == 79
        for token in range(36):
            row, col = 2 * (token // 6), 2 * (token % 6)
            stays = any(first[(row + i) * side + col + j] for i in (0, 1) for j in (0, 1))
            assert (36 * tile + token in kept) == stays
    assert 0 < len(kept) < 36 * len(states)


@torch.no_grad()
def test_features_made_before_are_refused(method):
    llava, inputs = tiny.llava(depth=4), tiny.batch(PROMPTS[2])
    features = llava.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    with feathervlm.prune(llava, method), pytest.raises(Unprunable, match=r"made before feathervlm\.prune"):
        llava(**inputs, mm_encoder_outputs={"image": features})
    layout = VisualLayout(inputs["input_ids"] == tiny.IMAGE, [[(1, tiny.SIDE, tiny.SIDE)]])
    embeds = llava.get_input_embeddings()(inputs["input_ids"])
    with feathervlm.prune(llava, method, layout=layout), pytest.raises(Unprunable, match="made before"):
        llava(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])


@torch.no_grad()
def test_a_model_without_an_encoder_is_refused(method):
    layout = VisualLayout(torch.ones(1, 36, dtype=torch.bool), [[(1, 6, 6)]])
    with pytest.raises(Unprunable, match="no vision encoder under a known name"):
        feathervlm.prune(tiny.llama(), method, layout=layout)


@pytest.mark.parametrize("name", ["paddleocr_vl", "video_llama_3", "mistral3"])
def test_an_encoder_that_packs_or_rotates_in_its_own_way_is_refused(name, method):
    with pytest.raises(Unprunable, match=r"gives its layers the places of patches \(.*position_embeddings\)"):
        feathervlm.prune(FAMILY_CASES[name].model(), method)


@pytest.mark.parametrize("name", ["qwen3_vl", "granite_docling"])
def test_an_encoder_whose_middle_states_are_used_is_refused(name, method):
    with pytest.raises(Unprunable, match="uses the states of its middle layers"):
        feathervlm.prune(FAMILY_CASES[name].model(), method)


@torch.no_grad()
def test_a_picture_that_cannot_be_merged_is_refused_or_left_alone(method):
    llava, inputs = tiny.llava(depth=4), tiny.batch(PROMPTS[2])
    plain = llava(**inputs).logits
    layers = llava.model.vision_tower.encoder.layers
    mask = layers[0].register_forward_pre_hook(lambda module, args: (args[0], torch.zeros(1, 1, 37, 37)), prepend=True)
    try:
        with feathervlm.prune(llava, method), pytest.raises(Unprunable, match="packs or masks these pictures"):
            llava(**inputs)
        with feathervlm.prune(llava, method, strict=False) as pruning:
            with pytest.warns(UserWarning, match="packs or masks") as warned:
                unpruned = llava(**inputs).logits
            assert not pruning.report.pruned
            assert "packs or masks" in str(pruning.report)
            assert len(warned) == 1
            with pytest.warns(UserWarning, match="runs unpruned") as warned:
                llava.generate(**inputs, max_new_tokens=2)
            assert "could not be merged" in str(warned[-1].message)
            assert not pruning.report.pruned
        torch.testing.assert_close(unpruned, plain, atol=1e-5, rtol=0)
    finally:
        mask.remove()


@torch.no_grad()
def test_an_encoder_in_parts_is_refused(method):
    llava, inputs = tiny.llava(depth=4), tiny.batch(PROMPTS[2])
    encoder = llava.model.vision_tower.encoder
    with feathervlm.prune(llava, method):
        whole, encoder.layers = encoder.layers, encoder.layers[:3]
        with pytest.raises(Unprunable, match="leaves out layers"):
            llava(**inputs)
        encoder.layers = whole
        llava(**inputs)


def test_repeating_layers_for_gradients_is_refused(method):
    llava, inputs = tiny.llava(depth=4).train(), tiny.batch(PROMPTS[2])
    tower = llava.model.vision_tower
    (tower.gradient_checkpointing_enable if OLD else tower.activation_checkpointing_enable)()
    with feathervlm.prune(llava, method), pytest.raises(Unprunable, match="gradient checkpointing"):
        llava(**inputs)


@torch.no_grad()
def test_merging_inside_merging_happens_once():
    llava = tiny.llava(depth=4)
    merge, pixels = (
        EncoderMerge(llava.model, BipartiteMerging(keep=0.5), pytest.fail),
        tiny.batch(PROMPTS[2])["pixel_values"],
    )
    with merge.active(), merge.active():
        llava.model.vision_tower(pixels)
    assert [run.entered for run in merge.runs] == [[37, 31, 25, 19]]
    assert merge.representatives().sum(-1)[:, 0].tolist() == [37, 31, 25, 19, 19]


@torch.no_grad()
def test_another_thread_must_wait():
    llava = tiny.llava(depth=4)
    merge, raised = EncoderMerge(llava.model, BipartiteMerging(keep=0.5), pytest.fail), []

    def other():
        try:
            with merge.active():
                raised.append(None)
        except PruningError as error:
            raised.append(str(error))

    for _ in range(2):
        with merge.active() if not raised else nullcontext():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
    assert "another thread is in it" in raised[0]
    assert raised[1] is None


@torch.no_grad()
def test_a_tower_goes_with_any_selection_behind_it():
    llava, inputs = tiny.llava(depth=4), tiny.batch(*PROMPTS)
    schedule = Schedule(Stage(1, Top(KNNDensity(3), 0.5)), encoder=DensityPeakMerging(layer=0, keep=0.75))
    with feathervlm.prune(llava, schedule) as pruning:
        llava(**inputs)
    assert pruning.report.encoder_tokens == [[28] * 4]
    assert [len(kept) for kept in pruning.report.stages[0].kept] == [36, 0, 18]


def test_schedules_with_towers_in_writing():
    for schedule in (
        methods.ToMe(keep=0.3, start=2).schedule(),
        Schedule(Stage(0, KeepAll()), encoder=DensityPeakMerging(reach=9)),
        Schedule(Stage(2, Grid(2)), encoder=BipartiteMerging(proportional=False)),
    ):
        assert from_json(to_json(schedule)) == schedule
        assert hash(copy.deepcopy(schedule)) == hash(schedule)
    assert '"encoder"' not in to_json(Schedule(Stage(0, KeepAll())))
    assert Schedule(Stage(0, KeepAll())) != Schedule(Stage(0, KeepAll()), encoder=DensityPeakMerging())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Schedule(encoder=DensityPeakMerging()), "needs a stage; Stage"),
        (lambda: Schedule(Stage(0, OnePerGroup(0.5))), "needs the groups of merging"),
        (lambda: Schedule(Stage(0, KeepAll()), encoder=Grid(2)), r"encoder=Grid\(stride=2\) must merge"),
        (
            lambda: Schedule(Stage(0, Top(VisionAttention(), 0.5)), encoder=DensityPeakMerging()),
            "not those of single patches",
        ),
        (lambda: Survivors(methods.ToMe().schedule()), "its schedule cannot merge there"),
        (lambda: methods.BeforeLLM(methods.ToMe()), "its schedule cannot merge there"),
        (lambda: methods.ShuffledPositions(methods.AiluRus()), "has a stage at layer 0"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(make, says):
    with pytest.raises(PruningError, match=says):
        make()
