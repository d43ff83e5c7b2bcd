import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.core.cost import LayerCost, decoder_layer, flops, kv_numbers, linear_reduction, paper_flops_reduction

HIDDEN, INTERMEDIATE, DEPTH, VISUAL = 4096, 11008, 32, 729  # Llama-2-7B and SigLIP at 384 pixels


def tokens_per_layer(cuts):
    tokens = [VISUAL] * DEPTH
    for layer, kept in cuts.items():
        tokens[layer:] = [kept] * (DEPTH - layer)
    return tokens


def exact_percent(cuts):
    return 100 * paper_flops_reduction(tokens_per_layer(cuts), VISUAL, HIDDEN, INTERMEDIATE)


def linear_percent(cuts):
    return 100 * linear_reduction(tokens_per_layer(cuts), VISUAL)


# Layer: tokens from there on; Eq. 1; token-linear; as printed in arXiv 2412.13180.
CERTAIN = [
    pytest.param({3: 182}, 68.6, 68.0, 68, id="K=3 R=.75 attention"),
    pytest.param({3: 196}, 66.9, 66.3, 66, id="K=3 KNN or uniform"),
    pytest.param({8: 182}, 56.8, 56.3, 56, id="K=8 R=.75 attention"),
    pytest.param({8: 196}, 55.4, 54.8, 55, id="K=8 KNN or uniform"),
    pytest.param({3: 364}, 46.2, 45.4, 45, id="FastV K=3 R=.5"),
    pytest.param({8: 218, 16: 65, 24: 19}, 64.9, 64.6, 65, id="PyramidDrop .3"),
    pytest.param({8: 437, 16: 262, 24: 157}, 46.2, 45.6, 46, id="PyramidDrop .6"),
    pytest.param({0: 256}, 65.7, 64.9, 65, id="256 before the model"),
]
# The size of a union depends on the sample: smallest and largest typical one.
UNIONS = [
    pytest.param({3: 243}, {3: 239}, (61.1, 61.6), (60.4, 61.4), 61, id="K=3 ensemble"),
    pytest.param({8: 239}, {8: 239}, (51.0, 51.0), (50.4, 50.4), 50, id="K=8 ensemble"),
    pytest.param({8: 275, 16: 24}, {8: 275, 16: 24}, (64.2, 64.2), (63.9, 63.9), 64, id="FEATHER R=.7"),
    pytest.param({8: 464, 16: 167}, {8: 464, 16: 167}, (48.2, 48.2), (47.6, 47.6), 48, id="FEATHER R=.4"),
]


@pytest.mark.parametrize(("cuts", "exact", "linear", "printed"), CERTAIN)
def test_reductions_of_the_paper(cuts, exact, linear, printed):
    assert exact_percent(cuts) == pytest.approx(exact, abs=0.1)
    assert linear_percent(cuts) == pytest.approx(linear, abs=0.1)
    assert exact_percent(cuts) == pytest.approx(printed, abs=1.3)
    assert linear_percent(cuts) == pytest.approx(printed, abs=0.7)


@pytest.mark.parametrize(("most", "least", "exact", "linear", "printed"), UNIONS)
def test_reductions_of_the_paper_with_unions(most, least, exact, linear, printed):
    for cuts in (most, least):
        assert exact[0] - 0.1 <= exact_percent(cuts) <= exact[1] + 0.1
        assert linear[0] - 0.1 <= linear_percent(cuts) <= linear[1] + 0.1
        assert exact_percent(cuts) == pytest.approx(printed, abs=1.3)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1000, 2000))
def test_the_paper_formula_by_its_terms(tokens, visual):
    d, m = 64, 172
    spent = sum(4 * n * d * d + 2 * n * n * d + 2 * n * d * m for n in tokens)
    whole = len(tokens) * (4 * visual * d * d + 2 * visual * visual * d + 2 * visual * d * m)
    assert paper_flops_reduction(tokens, visual, d, m) == pytest.approx(1 - spent / whole)
    assert linear_reduction(tokens, visual) == pytest.approx(1 - sum(tokens) / len(tokens) / visual)


def test_nothing_pruned_saves_nothing_and_everything_pruned_all():
    assert exact_percent({}) == linear_percent({}) == 0
    assert exact_percent({0: 0}) == linear_percent({0: 0}) == 100


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 500), st.integers(1, 64))
def test_layer_flops_agree_with_a_loop_over_tokens(tokens, past, weights, width):
    total = 0
    for position in range(past, past + tokens):
        total += 2 * weights
        for _ in range(position + 1):
            total += 2 * width + 2 * width  # q k and a v
    assert LayerCost(weights, width, 1).flops(tokens, past) == total


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_a_prefill_in_two_chunks_costs_the_same(past, first, second):
    layer = LayerCost(weights=1000, attention_width=64, kv_width=16)
    assert layer.flops(first, past) + layer.flops(second, past + first) == layer.flops(first + second, past)


@pytest.mark.parametrize(
    ("dimensions", "weights"),
    [
        ((4096, 11008, 32, 32, 128), 4 * 4096**2 + 3 * 4096 * 11008),  # Llama-2-7B
        ((4096, 14336, 32, 8, 128), 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336),  # Llama-3-8B, grouped queries
        ((1024, 3072, 16, 8, 128), 2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072),  # Qwen3-0.6B, wide heads
    ],
)
def test_a_dense_decoder_layer_in_closed_form(dimensions, weights):
    _, _, heads, kv_heads, head_dim = dimensions
    assert decoder_layer(*dimensions) == LayerCost(weights, heads * head_dim, 2 * kv_heads * head_dim)


def test_an_mlp_without_a_gate_has_two_matrices():
    gated, plain = (decoder_layer(64, 256, 4, 2, 16, gated=gated) for gated in (True, False))
    assert gated.weights - plain.weights == 64 * 256


def test_flops_and_kv_add_up_over_layers():
    layers = [LayerCost(10, 4, 3), LayerCost(20, 8, 5)]
    assert flops(layers, [7, 2]) == layers[0].flops(7) + layers[1].flops(2)
    assert flops(layers, [7, 2], past=[1, 4]) == layers[0].flops(7, 1) + layers[1].flops(2, 4)
    assert kv_numbers(layers, [7, 2]) == 3 * 7 + 5 * 2


def test_kv_of_llama_2_is_half_a_megabyte_per_token():
    layer = decoder_layer(HIDDEN, INTERMEDIATE, 32, 32, 128)
    assert 2 * kv_numbers([layer] * DEPTH, [1] * DEPTH) == 512 * 1024  # two bytes each


def test_every_layer_needs_a_count():
    layers = [LayerCost(10, 4, 3)] * 2
    with pytest.raises(ValueError, match="zip"):
        flops(layers, [1])
    with pytest.raises(ValueError, match="zip"):
        kv_numbers(layers, [1, 2, 3])
