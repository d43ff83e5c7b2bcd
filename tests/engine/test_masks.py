"""Masks of pruned layers are rows and columns of the model's own masks, or None where that is right."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feathervlm import Unprunable
from feathervlm.engine.masks import pruned_mask

FLOAT = torch.float32
LOW = torch.finfo(FLOAT).min


@st.composite
def cases(draw):
    """Return a ragged selection from a batch of sequences, and a mask of the unpruned sequence."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(2, 9))
    past, offset = draw(st.integers(0, 4)), 0
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kept = draw(st.integers(1, length))
    rows = torch.stack([torch.randperm(length, generator=generator)[:kept].sort().values for _ in range(batch)])
    before = torch.arange(past).expand(batch, -1)
    if past:
        offset = draw(st.integers(0, past - 1))
    columns = torch.cat([before, rows + past], 1)
    valid = torch.rand(columns.shape, generator=generator) > 0.3 if draw(st.booleans()) else None
    mask = torch.rand(batch, 1, length, past + length - offset, generator=generator) > 0.4
    return mask, rows, rows + past, columns, valid, offset


@given(cases())
def test_every_entry_is_looked_up_by_position(case):
    mask, rows, query, columns, valid, offset = case
    result = pruned_mask(mask, rows, query, columns, valid, offset, "sdpa", FLOAT)
    additive = torch.where(mask, 0.0, LOW)
    eager = pruned_mask(additive, rows, query, columns, valid, offset, "eager", FLOAT)
    assert result.shape == (len(mask), 1, rows.shape[1], columns.shape[1])
    for b in range(len(mask)):
        for q, row in enumerate(rows[b].tolist()):
            for k, position in enumerate(columns[b].tolist()):
                seen = position >= offset and bool(mask[b, 0, row, position - offset])
                seen = seen and (valid is None or bool(valid[b, k]))
                assert bool(result[b, 0, q, k]) == seen
                assert float(eager[b, 0, q, k]) == (0 if seen else LOW)


@given(cases())
def test_flash_masks_keep_the_columns_that_are_attended(case):
    _, rows, query, columns, valid, _ = case
    attended = torch.rand(len(rows), int(columns.max()) + 1) > 0.3
    result = pruned_mask(attended, rows, query, columns, valid, 0, "flash_attention_2", FLOAT)
    expected = attended.gather(1, columns)
    assert torch.equal(result, expected if valid is None else expected & valid)


@given(cases())
def test_no_mask_stays_no_mask_unless_the_batch_is_ragged(case):
    _, rows, query, columns, valid, _ = case
    for attention in ("sdpa", "eager", "flash_attention_2"):
        assert pruned_mask(None, rows, query, columns, None, 0, attention, FLOAT) is None
    if valid is None:
        return
    causal = (query[:, :, None] >= columns[:, None]) & valid[:, None]
    assert torch.equal(pruned_mask(None, rows, query, columns, valid, 0, "sdpa", FLOAT), causal[:, None])
    eager = pruned_mask(None, rows, query, columns, valid, 0, "eager", FLOAT)
    assert torch.equal(eager, torch.where(causal[:, None], 0.0, LOW))
    assert pruned_mask(None, rows, query, columns, valid, 0, "flash_attention_2", FLOAT) is valid
    both_ways = pruned_mask(None, rows, query, columns, valid, 0, "sdpa", FLOAT, causal=False)
    assert torch.equal(both_ways, valid[:, None, None].expand_as(both_ways))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_masks_stay_in_range(dtype):
    mask = torch.zeros(1, 1, 3, 3, dtype=dtype)
    place = torch.tensor([[0, 2]])
    result = pruned_mask(mask, place, place, place, torch.tensor([[False, True]]), 0, "eager", dtype)
    assert result.dtype == dtype
    assert result[0, 0, :, 0].tolist() == [torch.finfo(dtype).min] * 2


def test_a_mask_that_one_sample_stands_for_serves_the_batch():
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    place = torch.tensor([[0, 2], [1, 2]])
    result = pruned_mask(mask, place, place, place, None, 0, "sdpa", FLOAT)
    assert result[:, 0].tolist() == [[[True, False], [True, True]]] * 2


@pytest.mark.parametrize("mask", ["BlockMask", torch.ones(1, 3, 3)])
def test_unknown_masks_are_refused(mask):
    place = torch.tensor([[0, 2]])
    with pytest.raises(Unprunable, match="cannot be pruned"):
        pruned_mask(mask, place, place, place, None, 0, "sdpa", FLOAT)
