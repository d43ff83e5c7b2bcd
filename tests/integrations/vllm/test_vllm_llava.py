"""The embedded LLaVA in vLLM against the HF engine, with chunks of 32 tokens, prefix caching and eight requests."""

from types import SimpleNamespace

import pytest
from served_models import Ask, HuggingFace, Served

from feathervlm.embedded import model as embedded
from feathervlm.embedded.assets import WEIGHTS
from feathervlm.serving.plan import plan_of

FEATHER = "before-llm:method=(feather:layers=4+9,fixed=true)"
FASTV = "before-llm:method=(fastv:layer=9,keep=0.25)"
TEXT_FREE = [
    "uniform:layer=0",
    "random:layer=0",
    "divprune:keep=0.25",
    "divprune:keep=0.1,positions=renumber",
    "knn:layer=0,count=40",
    "knn:layer=0,count=40,features=projected",
    "pool",
    "fastervlm:keep=0.25",
    "visionzip",
    "hiprune",
    "holov",
]
READING = ["cdpruner", FEATHER, FASTV, "before-llm:method=(pyramiddrop:layers=4+8+12)"]
GRID = (1, 16, 16)


@pytest.fixture(scope="module")
def hf():
    return HuggingFace(*embedded.load())


@pytest.fixture(scope="module")
def served(hf):
    return Served(
        str(WEIGHTS),
        hf,
        max_model_len=2048,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        block_size=32,
        enable_prefix_caching=True,
        limit_mm_per_prompt={"image": 2},
        hf_overrides={"architectures": ["FeathervlmLlava"]},
    )


@pytest.mark.parametrize("method", [None, *TEXT_FREE, *READING])
def test_the_same_tokens_are_kept_and_generated(served, hf, scenes, method):
    """Alone and with nothing cached; `prompt` is the number of tokens that is left of the prompt."""
    for scene, question in scenes[:3]:
        ask = Ask((scene.image,), question.text, method)
        reply = served.reply(ask)
        assert reply == hf.reply(ask)
        if method is not None:
            unpruned = len(hf.ids(ask)) - 1
            assert reply.prompt == unpruned + plan_of(method, 16).kept(GRID)


def test_last_bits_of_features_decide_between_duplicates_only(served, hf, scenes):
    """VisPruner compares tokens of plain regions, whose features differ by rounding."""
    asks = [Ask((scene.image,), question.text, "vispruner") for scene, question in scenes]
    pairs = [(served.reply(ask), hf.reply(ask)) for ask in asks]
    assert [reply.prompt for reply, _ in pairs] == [expected.prompt for _, expected in pairs]
    assert sum(reply == expected for reply, expected in pairs) >= len(pairs) - 2


def test_requests_with_different_methods_run_together(served, hf, scenes):
    """More requests than run at a time, some without a picture, some without pruning, one picture in several."""
    methods = [None, "divprune:keep=0.25", FEATHER, "uniform:layer=0", "cdpruner", "pool", "fastervlm:keep=0.25", FASTV]
    asks = [Ask((scene.image,), question.text, method) for scene, question in scenes for method in methods]
    asks[5:5] = [Ask((), "how many circles are there ?"), Ask((), "where is the red circle ?")]
    (first, question), (second, _) = scenes[:2]
    asks += [Ask((first.image, second.image), question.text, method) for method in (*methods[:2], "pool")]
    expected = [hf.reply(ask) for ask in asks]
    for _ in range(2):  # first with nothing cached, then with everything
        replies = served.replies(asks)
        assert [reply.tokens for reply in replies] == [reply.tokens for reply in expected]
        assert [reply.prompt for reply in replies] == [reply.prompt for reply in expected]


@pytest.mark.parametrize("method", ["uniform:layer=0", "divprune:keep=0.25", "fastervlm:keep=0.25", "visionzip", None])
def test_two_pictures_in_a_prompt(served, hf, scenes, method):
    for first, second in zip(scenes[:3], scenes[3:], strict=True):
        ask = Ask((first[0].image, second[0].image), first[1].text, method)
        assert served.reply(ask) == hf.reply(ask)


@pytest.mark.parametrize(
    "method", ["divprune:keep=1.0", "uniform:layer=0,stride=1", "before-llm:method=(fastv:keep=1.0)"]
)
def test_keeping_everything_is_not_pruning(served, hf, scenes, method):
    for scene, question in scenes[:3]:
        unpruned = hf.reply(Ask((scene.image,), question.text))
        reply = served.reply(Ask((scene.image,), question.text, method))
        assert (reply.tokens, reply.prompt) == (unpruned.tokens, unpruned.prompt)


def test_a_prefix_is_shared_by_questions_only_if_the_choice_does_not_read_them(served, hf, scenes):
    scene, question = scenes[0]
    texts = [question.text, "what is the background ?", question.text]

    def cached(method):
        served.llm.reset_mm_cache()
        served.llm.reset_prefix_cache()
        return [served.cached_tokens(Ask((scene.image,), text, method)) for text in texts]

    first, other, again = cached("divprune:keep=0.5")
    assert first == 0
    assert other >= 96
    assert again >= other
    first, other, again = cached("before-llm:method=(fastv:layer=9,keep=0.5)")
    assert (first, other) == (0, 0)
    assert again >= 96


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("feather:layers=4+9", r"write before-llm:method=\(feather:layers=4\+9,fixed=true\)"),
        ("before-llm:method=(feather:layers=4+9)", "fixed=true"),
        ("nonsense", "There is no method 'nonsense'"),
        ("divprune:keep=0", "keep=0"),
        ("tome", "inside the vision encoder"),
        ("fastervlm:encoder_layer=-9", "encoder"),
        ("before-llm:method=(fastv:layer=40)", "Layer 40 is beyond"),
        ("text-only", "keeps no visual token"),
        ("schedule.json", "is a file"),
        (7, "is not a method"),
        ({"a": 1}, "is not a method"),
        ("x" * 2000, "at most 1000 characters"),
    ],
)
def test_a_wrong_method_is_refused_by_the_processor_and_the_engine_goes_on(served, scenes, method, reason):
    scene, question = scenes[0]
    with pytest.raises(ValueError, match=reason):
        served.replies([Ask((scene.image,), question.text, method)])
    assert served.replies([Ask((scene.image,), question.text, "divprune:keep=0.25")])


def test_a_prompt_that_cannot_be_pruned_is_refused(served, scenes):
    scene, question = scenes[0]
    with pytest.raises(ValueError, match="one picture in a prompt"):
        served.replies([Ask((scene.image, scene.image), question.text, FEATHER)])
    with pytest.raises(ValueError, match="tokens before pruning"):
        served.replies([Ask((scene.image,), " ".join(["red"] * 1900), "divprune:keep=0.25")])


REFUSED_OPTIONS = {
    "pipeline-parallel": ("parallel_config", "pipeline_parallel_size", 2),
    "speculative": ("speculative_config", None, object()),
    "tower-connector-lora": ("lora_config", "enable_tower_connector_lora", True),
    "compile_mm_encoder": ("compilation_config", "compile_mm_encoder", True),
    "cudagraph_mm_encoder": ("compilation_config", "cudagraph_mm_encoder", True),
    "mm-encoder-tp-mode": ("multimodal", "mm_encoder_tp_mode", "data"),
    "video-pruning-rate": ("multimodal", "video_pruning_rate", 0.5),
    "enable-mm-embeds": ("multimodal", "enable_mm_embeds", True),
}


def engine_config(part=None, name=None, value=None):
    """What the plug-in reads of vLLM's configuration, with its defaults but for one value."""
    parts = {
        "parallel_config": SimpleNamespace(pipeline_parallel_size=1),
        "speculative_config": None,
        "lora_config": SimpleNamespace(enable_tower_connector_lora=False),
        "compilation_config": SimpleNamespace(compile_mm_encoder=False, cudagraph_mm_encoder=False),
        "multimodal": SimpleNamespace(mm_encoder_tp_mode="weights", video_pruning_rate=None, enable_mm_embeds=False),
    }
    if part is not None and name is None:
        parts[part] = value
    elif part is not None:
        setattr(parts[part], name, value)
    multimodal = parts.pop("multimodal")
    return SimpleNamespace(**parts, model_config=SimpleNamespace(multimodal_config=multimodal))


@pytest.mark.parametrize("option", REFUSED_OPTIONS)
def test_what_pruning_does_not_go_with_is_refused_at_the_start(option):
    from feathervlm.integrations.vllm.config import PruningConfig

    PruningConfig.verify_and_update_config(engine_config())
    with pytest.raises(ValueError, match=option):
        PruningConfig.verify_and_update_config(engine_config(*REFUSED_OPTIONS[option]))


def test_vllms_configuration_has_the_options_that_are_refused(served):
    """So that a renamed option is noticed, and not read as absent."""
    from feathervlm.integrations.vllm.config import PruningConfig

    PruningConfig.verify_and_update_config(served.llm.llm_engine.vllm_config)
