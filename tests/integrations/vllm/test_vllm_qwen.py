"""A tiny Qwen2.5-VL of random weights in vLLM against the HF engine, with chunks of 32 tokens and prefix caching."""

import numpy as np
import pytest
import tiny_qwen
from PIL import Image
from served_models import Ask, HuggingFace, Served
from transformers import AutoModelForImageTextToText, AutoProcessor

METHODS = [
    None,
    "uniform:layer=0",
    "random:layer=0",
    "divprune:keep=0.25",
    "knn:layer=0,count=10",
    "knn:layer=0,count=10,features=projected",
    "pool",
    "fastervlm:keep=0.25,encoder_layer=-1",
    "fastervlm:keep=0.25,encoder_layer=0",
    "visionzip:encoder_layer=-1",
    "cdpruner",
    "before-llm:method=(feather:layers=2+4,fixed=true)",
    "before-llm:method=(fastv:layer=2)",
    "before-llm:method=(v2drop:layers=1+3+5)",
]


def picture(rows, cols, seed):
    blocks = np.random.default_rng(seed).integers(0, 255, (rows, cols, 3))
    return Image.fromarray(np.kron(blocks, np.ones((28, 28, 1))).astype("uint8"))


ASKS = [
    ((picture(8, 6, 1),), "w1 w2 w3"),
    ((picture(5, 10, 2),), "w5 w6"),
    ((picture(10, 10, 3),), "w11 w12 w13 w14 w15"),
]
TWO = ((picture(4, 4, 4), picture(7, 5, 5)), "w7 w8 w9")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen")
    tiny_qwen.make(path)
    return str(path)


@pytest.fixture(scope="module")
def hf(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    return HuggingFace(model, AutoProcessor.from_pretrained(folder))


@pytest.fixture(scope="module")
def served(folder, hf):
    return Served(
        folder,
        hf,
        max_model_len=1024,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        block_size=32,
        limit_mm_per_prompt={"image": 2, "video": 0},
        hf_overrides={"architectures": ["FeathervlmQwen2_5_VL"]},
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_same_tokens_are_kept_and_generated(served, hf, method):
    for images, text in ASKS:
        ask = Ask(images, text, method)
        assert served.reply(ask) == hf.reply(ask)


@pytest.mark.parametrize("method", [None, "uniform:layer=0", "divprune:keep=0.25", "visionzip:encoder_layer=-1"])
def test_two_pictures_of_different_sizes(served, hf, method):
    ask = Ask(*TWO, method)
    assert served.reply(ask) == hf.reply(ask)


def test_requests_with_different_methods_run_together(served, hf):
    asks = [Ask(images, text, method) for images, text in ASKS for method in METHODS]
    asks += [Ask(*TWO), Ask(*TWO, "divprune:keep=0.5"), Ask((), "w1 w2")]
    expected = [hf.reply(ask) for ask in asks]
    for _ in range(2):  # first with nothing cached, then with everything
        replies = served.replies(asks)
        assert [reply.tokens for reply in replies] == [reply.tokens for reply in expected]
        assert [reply.prompt for reply in replies] == [reply.prompt for reply in expected]


@pytest.mark.parametrize("method", ["divprune:positions=renumber", "fastervlm:encoder_layer=5"])
def test_what_the_model_does_not_allow_is_refused(served, method):
    images, text = ASKS[0]
    with pytest.raises(ValueError, match=r"positions|layers"):
        served.replies([Ask(images, text, method)])
