"""What is refused for want of memory: the estimate against counting, and limits that are made up."""

import pytest
import torch
from transformers import DynamicCache

from feathervlm.bench import memory_check
from feathervlm.bench.memory import kv_bytes
from feathervlm.bench.memory_check import GIB, MemoryEstimate
from feathervlm.methods import get

CPU = torch.device("cpu")


def test_weights_and_cache_are_exact(build):
    model, prompt = build("mini")
    found = memory_check.estimate(model, prompt.inputs, 3, 0, 4, [])
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(**prompt.batch(3, False, CPU, torch.float32), past_key_values=cache)
    assert found.weights == sum(part.numel() * 4 for part in model.parameters())
    assert found.cache == kv_bytes(cache)


def test_what_a_need_grows_with(build):
    model, prompt = build("mini")
    usual = memory_check.estimate(model, prompt.inputs, 1, 8, 4, [get("feather").schedule()])
    twice = memory_check.estimate(model, prompt.inputs, 2, 8, 4, [get("feather").schedule()])
    assert (twice.cache, twice.activations) == (2 * usual.cache, 2 * usual.activations)
    assert twice.weights == usual.weights
    longer = memory_check.estimate(model, prompt.inputs, 1, 9, 4, [])
    assert longer.cache - usual.cache == 4 * 2 * 64 * 4  # layers, keys and values, width, bytes
    pairs = memory_check.estimate(model, prompt.inputs, 1, 8, 4, [get("divprune").schedule()])
    assert pairs.activations - usual.activations == memory_check.SLACK * 3 * 4 * prompt.length**2
    assert memory_check.estimate(model, prompt.inputs, 1, 8, 2, []).weights == usual.weights // 2


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("fastv", False), ("feather", False), ("random", False), ("divprune", True), ("before-llm", False)],
)
def test_which_methods_compare_tokens(spec, expected):
    assert memory_check.compares_pairs(get(spec).schedule()) is expected


def test_refusals_name_numbers_and_remedy():
    needed = MemoryEstimate(6 * GIB, 2 * GIB, 1 * GIB)
    assert memory_check.refusal(needed, CPU, "it", room=10 * GIB) is None
    text = memory_check.refusal(needed, CPU, "it", room=int(9.9 * GIB))
    assert text is not None
    for part in ("it needs 9.0 GiB", "6.0 weights, 2.0 cache, 1.0 activations", "9.9 GiB are free on cpu", "--dtype"):
        assert part in text


def test_free_memory_is_the_least_of_machine_and_group(monkeypatch):
    monkeypatch.setattr(memory_check, "_system", lambda: 100)
    monkeypatch.setattr(memory_check, "_limits", lambda: [70, 90])
    assert memory_check.free(CPU) == 70
    monkeypatch.setattr(memory_check, "_limits", list)
    assert memory_check.free(CPU) == 100


def test_meminfo(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   12 kB\nHugePages_Total: 0\n")
    assert memory_check._system(tmp_path / "meminfo") == 12 * 1024
    assert memory_check._system(tmp_path / "none") > 0


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("outside", [True, False])
def test_control_groups(tmp_path, version, outside):
    kinds, limit, used, stat = {
        1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("", "memory.max", "memory.current", "inactive_file"),
    }[version]
    (tmp_path / "own").write_text(f"7:cpu:/x\n3:{kinds}:/box\n")
    folder = tmp_path / "root" / kinds / ("box" if outside else "")
    folder.mkdir(parents=True)
    (folder / limit).write_text("1000\n")
    (folder / used).write_text("400\n")
    (folder / "memory.stat").write_text(f"anon 7\n{stat} 50\n")
    assert memory_check._limits(tmp_path / "root", tmp_path / "own") == [650]
    if version == 2:
        (folder / limit).write_text("max\n")
        assert memory_check._limits(tmp_path / "root", tmp_path / "own") == []
