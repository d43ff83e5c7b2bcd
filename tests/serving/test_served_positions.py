"""Positions of the tokens of a pruned prompt."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from feathervlm.serving import positions as p


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(0, 9)), max_size=3),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
)
def test_every_token_of_a_pruned_prompt_has_the_position_it_had(images, last, random):
    """Against a prompt written out with all its placeholders, from which tokens are deleted."""
    full, pruned, places, kept_cells, placed = [], [], [], [], []
    for text, kept, more in images:
        for _ in range(text):
            pruned.append(len(full))
            places.append(len(full))
            full.append(1)
        size = kept + more
        cells = sorted(random.sample(range(size), kept))
        placed.append(p.PlacedImage(len(pruned), kept, size))
        places += [len(full) + cell for cell in cells]
        pruned += [9] * kept
        kept_cells.append(cells)
        full += [9] * size
    pruned += [1] * last
    places += range(len(full), len(full) + last)
    full += [1] * last
    tokens = [9 if any(i.offset <= n < i.offset + i.kept for i in placed) else 1 for n in range(len(pruned))]
    found = p.full_prompt(tokens, placed)
    assert found.tokens == full
    shifts = [0] * len(tokens)
    for image, cells in zip(placed, kept_cells, strict=True):
        shifts[image.offset : image.offset + image.kept] = cells
    assert [column + shift for column, shift in zip(found.columns, shifts, strict=True)] == places


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("axes", [1, 3])
def test_shifts_survive_every_type(dtype, axes):
    cells = torch.randint(0, p.BASE**p.DIGITS, (axes, 500))
    embeddings = torch.randn(500, 8).to(dtype)
    states, back = p.split_shifts(p.with_shifts(embeddings, cells), 8)
    assert torch.equal(back, cells)
    assert torch.equal(states, embeddings)


@pytest.mark.parametrize("grid", [(1, 4, 6), (1, 7, 3)])
def test_positions_on_a_grid_are_those_of_the_model(grid):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2_5_VLConfig(
        text_config={**sizes, "num_key_value_heads": 2, "vocab_size": 20},
        vision_config={"hidden_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 32},
        image_token_id=9,
        vision_start_token_id=8,
    )
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config).model
    before, after = 3, 5
    ids = torch.tensor([[1, 1, 8, *[9] * (grid[1] * grid[2]), *[1] * after]])
    thw = torch.tensor([[1, grid[1] * 2, grid[2] * 2]])
    expected, _ = model.get_rope_index(
        ids, image_grid_thw=thw, mm_token_type_ids=(ids == 9).int(), attention_mask=torch.ones_like(ids)
    )
    assert torch.equal(p.grid_positions(before, grid, after), expected[:, 0])
