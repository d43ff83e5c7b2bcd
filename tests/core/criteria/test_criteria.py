import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm.core import KNNDensity, LastTokenAttention, PruningError, RandomScore
from feathervlm.core.signals import Attention, Features

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_knn_density_sees_each_image_alone(candidates):
    generator = torch.Generator().manual_seed(0)
    features, criterion = torch.randn(1, 21, 6, generator=generator), KNNDensity(3)
    present = torch.rand(1, 21, generator=generator) < 0.8
    signal = Features("vision")
    both = candidates([[(1, 3, 4), (1, 3, 3)]], present=present, answers={signal: features})
    scores = criterion.score(both)
    for grid, part in (((1, 3, 4), slice(0, 12)), ((1, 3, 3), slice(12, 21))):
        single = candidates([[grid]], present=present[:, part], answers={signal: features[:, part]})
        torch.testing.assert_close(scores[:, part], criterion.score(single))


def test_knn_density_ignores_what_absent_tokens_hold(candidates):
    features = torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(1))
    present = torch.tensor([[True, True, False, True, True, False]])
    spoiled = features.masked_fill(~present[..., None], float("nan"))
    clean, dirty = (
        KNNDensity().score(candidates([[(1, 2, 3)]], present=present, answers={Features("vision"): answer}))
        for answer in (features, spoiled)
    )
    assert torch.equal(clean[present], dirty[present])


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("over", ["visual", "all"])
@pytest.mark.parametrize("layer", ["K-1", "K"])
def test_last_token_attention_is_its_signal(candidates, rope, over, layer):
    criterion = LastTokenAttention(rope=rope, over=over, layer=layer)
    signal = Attention(layer=layer, rope=rope, over=over)
    row = torch.tensor([[0.25, 0.75]])
    tokens = candidates([[(1, 1, 2)]], answers={signal: row})
    assert torch.equal(criterion.score(tokens), row)
    assert criterion.signals() == (signal,)


@pytest.mark.parametrize("source", ["vision", "projected"])
def test_knn_density_reads_the_features_that_it_announces(candidates, source):
    criterion = KNNDensity(features=source)
    tokens = candidates([[(1, 1, 2)]], answers={Features(source): torch.randn(1, 2, 3)})
    criterion.score(tokens)
    assert set(tokens.signals.asked) == set(criterion.signals())


@relaxed
@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 200), st.integers(1, 3))
def test_random_scores_do_not_depend_on_batch_or_width(candidates, seed, width, more, batch):
    narrow = RandomScore(seed).score(candidates([[(1, 1, width)]]))
    wide = RandomScore(seed).score(candidates([[(1, 1, width + more)]] * batch))
    for row in wide:
        assert torch.equal(row[:width], narrow[0])
    assert 0 <= float(wide.min()) <= float(wide.max()) < 1


def test_random_scores_change_with_the_seed_and_leave_the_global_state(candidates):
    tokens, state = candidates([[(1, 4, 4)]]), torch.get_rng_state()
    assert not torch.equal(RandomScore(0).score(tokens), RandomScore(1).score(tokens))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LastTokenAttention(over="text"), "over='text'"),
        (lambda: LastTokenAttention(layer="K+1"), "layer='K+1'"),
        (lambda: LastTokenAttention(rope="no"), "rope='no'"),
        (lambda: LastTokenAttention(rope=1), "rope=1"),
        (lambda: KNNDensity(0), "neighbors=0"),
        (lambda: KNNDensity(2.5), "neighbors=2.5"),
        (lambda: KNNDensity(features="text"), "features='text'"),
    ],
)
def test_bad_parameters_are_named(make, named):
    with pytest.raises(PruningError) as error:
        make()
    assert named in str(error.value)


def test_equal_parameters_make_equal_criteria():
    assert len({LastTokenAttention(), LastTokenAttention(rope=True), KNNDensity(5), KNNDensity()}) == 2
