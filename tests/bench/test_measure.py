"""Runs of tiny models: their order, the document, and that the timed steps are those of `generate`."""

import inspect

import pytest
import torch

import feathervlm
from feathervlm.bench import measure, memory_check, run_bench
from feathervlm.bench.measure import Timing
from feathervlm.bench.run_bench import BenchRequest, run
from feathervlm.bench.timing import RunTimer
from feathervlm.core.errors import PruningError, Unprunable
from method_cases import crossed

CPU = torch.device("cpu")
SPEC = "fastv:layer=1,keep=0.25"


def request(**changes):
    return BenchRequest(**{"config": "mini", "methods": (SPEC,), "new_tokens": 3, "rounds": 2, **changes})


def test_everybody_runs_in_turns_after_warm_up_and_memory(monkeypatch, build):
    model, prompt = build("mini")
    order = []

    def run_once(model, inputs, name, timer, new_tokens):
        order.append((name, new_tokens))
        return Timing(dict.fromkeys(measure.PARTS, float(len(order))), 1, None)

    monkeypatch.setattr(measure, "run_once", run_once)
    found = measure.measure(model, prompt.batch(1, False, CPU, torch.float32), ["a", "b"], 2, 5)
    names = ["unpruned", "a", "b", "unpruned again"]
    assert order == [(name, tokens) for tokens in (1, 1, 5, 5) for name in names]
    assert [one.method for one in found] == names
    assert found[1].seconds["prefill"] == [10.0, 14.0]  # neither warm-up nor memory


@pytest.mark.parametrize(
    ("name", "spec", "ragged"),
    crossed(
        ["mini", "mini-next", "mini-qwen"], [None, "fastv:layer=1", "visionzip", "feather:layers=1+2"], [False, True]
    ),
)
def test_what_is_timed_is_what_generate_does(name, spec, ragged, build, monkeypatch):
    model, prompt = build(name, text=30)
    inputs = prompt.batch(2, ragged, CPU, torch.float32)
    chosen = []
    next_token = measure._next_token

    def noted(model, arguments):
        chosen.append(next_token(model, arguments))
        return chosen[-1]

    monkeypatch.setattr(measure, "_next_token", noted)
    with torch.inference_mode():
        shot = measure.run_once(model, inputs, spec or measure.UNPRUNED, RunTimer(CPU), 1)
    steps = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": None}
    # The bench feeds the same token to every model, so generate is made to take it, too.
    forced = lambda ids, scores: scores if ids.shape[1] > prompt.length else scores.fill_(-1).index_fill_(  # noqa: E731
        1, torch.tensor(measure.TOKEN), 1.0)  # fmt: skip
    if spec is None:
        free = model.generate(**inputs, max_new_tokens=1, do_sample=False)
        out = model.generate(**inputs, **steps, logits_processor=[forced])
    else:
        with feathervlm.prune(model, spec):
            free = model.generate(**inputs, max_new_tokens=1, do_sample=False)
        with feathervlm.prune(model, spec):
            out = model.generate(**inputs, **steps, logits_processor=[forced])
    assert chosen[0].tolist() == free[:, -1].tolist()
    assert chosen[1].tolist() == out[:, -1].tolist()
    assert set(shot.seconds) == set(measure.PARTS)
    assert (shot.report is None) == (spec is None)


@pytest.mark.parametrize(
    ("tokens", "batches", "layers"),
    [
        ((64, 49), (1, 2), (4,)),
        pytest.param((64, 49), (1, 2), (3, 4), marks=pytest.mark.full),
    ],
)
def test_a_document_holds_everything(tokens, batches, layers):
    found = run(request(tokens=tokens, batches=batches, layers=layers))
    cases = [(row["tokens"], row["batch"], row["layers"]) for row in found["rows"] if row["method"] == "unpruned"]
    assert cases == [(t, b, depth) for depth in layers for t in tokens for b in batches]
    assert [row["method"] for row in found["rows"]] == ["unpruned", "fastv:layer=1"] * len(cases)
    for row in found["rows"]:
        seconds, raw = row["seconds"], row["raw"]
        assert all(len(raw[part]) == 2 for part in measure.PARTS)
        assert min(*raw["prefill"], *raw["encoder"], *raw["decode"]) > 0
        assert seconds["first_token"]["median"] == pytest.approx(
            seconds["encoder"]["median"] + seconds["prefill"]["median"]
        )
        # A batch of equal samples holds what the report says, to the byte.
        assert row["kv_bytes_ratio"] == pytest.approx(row["ideal"]["kv_bytes"])
    pruned = [row for row in found["rows"] if row["method"] != "unpruned"]
    assert [row["stages"][0] for row in pruned[:2]] == [{"layer": 1, "tokens": 16.0}] * 2
    assert all(0 < row["ideal"]["prefill"] < 1 and row["selection_share"]["median"] > 0 for row in pruned)
    assert len(found["verdicts"]) == len(cases)
    assert len(found["break_even"]) == 2 * len(batches) * len(layers)
    assert found["refused"] == []
    assert {"command", "commit", "processor", "torch", "transformers", "threads"} <= set(found["provenance"])
    assert found["settings"]["clock"] == "processor time of the one thread"


def test_threads_are_as_before(monkeypatch):
    before = torch.get_num_threads()
    found = run(request(threads=2, rounds=1))
    assert found["provenance"]["threads"] == 2
    assert torch.get_num_threads() == before


def test_what_does_not_fit_is_refused_and_the_rest_measured(monkeypatch):
    weights = 26_000_000
    monkeypatch.setattr(memory_check, "free", lambda device: weights)
    found = run(request(batches=(1, 400), rounds=1))
    assert {row["batch"] for row in found["rows"]} == {1}
    (refused,) = found["refused"]
    assert (refused["tokens"], refused["batch"], refused["layers"]) == (64, 400, 4)
    assert "mini in float32 with 64 visual tokens and batch 400 needs" in refused["reason"]
    monkeypatch.setattr(memory_check, "free", lambda device: 1000)
    with pytest.raises(PruningError, match="GiB are free on cpu"):
        run(request())


def test_nothing_is_built_before_memory_is_checked(monkeypatch):
    monkeypatch.setattr(memory_check, "free", lambda device: 1000)
    monkeypatch.setattr(run_bench.PresetTarget, "build", lambda *_: pytest.fail("built"))
    with pytest.raises(PruningError):
        run(request())


def test_methods_that_the_model_has_no_signals_for():
    with pytest.raises(Unprunable, match="renumber"):
        run(request(config="mini-qwen", methods=("pyramiddrop",)))


def test_models_without_an_encoder_of_their_own_are_refused(monkeypatch, build):
    model, prompt = build("mini")
    inputs = prompt.batch(1, False, CPU, torch.float32)
    signature = inspect.signature(lambda input_ids: None)
    monkeypatch.setattr(measure.inspect, "signature", lambda function: signature)
    with pytest.raises(PruningError, match="cannot be timed apart"):
        measure.measure(model, inputs, [], 1, 1)


def test_a_model_of_ones_own(demo):
    found = run(BenchRequest(model=str(demo), methods=("fastv",), tokens=(64, 128), rounds=1, new_tokens=2))
    assert [row["tokens"] for row in found["rows"]] == [64, 64, 128, 128]
    assert found["settings"]["config"] is None
    assert found["model"]["type"] == "llava"
    shipped = run_bench.choose_target(BenchRequest(model="embedded"))
    assert shipped.inspect(None, None)[1].visual == 256
    with pytest.raises(PruningError, match="picture of this model has 64"):
        run(BenchRequest(model=str(demo), tokens=(100,)))
    with pytest.raises(PruningError, match="--depth"):
        run(BenchRequest(model=str(demo), layers=(2,)))
