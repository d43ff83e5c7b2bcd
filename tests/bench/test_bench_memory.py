"""Bytes that are really held, however they are looked at."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from feathervlm.bench import memory

CPU = torch.device("cpu")


def cache(*pairs):
    return SimpleNamespace(layers=[SimpleNamespace(keys=keys, values=values) for keys, values in pairs])


def test_a_view_counts_as_what_it_keeps_alive():
    long = torch.zeros(1, 2, 100, 8)
    short = torch.zeros(1, 2, 10, 8)
    assert memory.kv_bytes(cache((long[:, :, :10], short))) == 4 * (1600 + 160)


def test_shared_storage_counts_once_and_empty_layers_not_at_all():
    both = torch.zeros(2, 50)
    assert memory.kv_bytes(cache((both[0], both[1]), (None, None))) == 400
    assert memory.kv_bytes(SimpleNamespace(layers=[SimpleNamespace()])) == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process")
def test_the_peak_is_seen_though_it_is_gone_afterwards():
    size = 64 << 20
    found, result = memory.peak(CPU, lambda: float(torch.ones(size // 4).sum()))
    assert result == size / 4
    assert size * 0.9 < found < size * 1.5
    small, _ = memory.peak(CPU, lambda: None)
    assert small < size / 8


def test_no_peak_where_the_kernel_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "none")
    assert memory.peak(CPU, lambda: 3) == (None, 3)
