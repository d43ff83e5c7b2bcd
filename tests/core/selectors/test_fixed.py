import pytest
import torch
from choices import ROPE, relaxed, seeded, sets
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.core import Given, Grid, KeepAll, KeepNone, PruningError, Schedule, Stage, Top
from feathervlm.core.budget import ImageTokens
from feathervlm.core.layout import picture_of
from feathervlm.core.scoring_pass import Survivors, SurvivorsOf


def test_nothing_keeps_nothing(candidates):
    image = ImageTokens(picture_of((1, 2, 2)), 4.0)
    tokens = candidates([[(1, 2, 2)]], present=[[True, False, True, True]])
    assert not KeepNone().select(tokens).any()
    assert torch.equal(KeepAll().select(tokens), tokens.present)
    assert KeepNone().size(image) == KeepNone().expected(image) == 0


@relaxed
@given(st.data())
def test_given_tokens_stay_where_they_are_still_there(batches, data):
    tokens = data.draw(batches())
    chosen = torch.rand(tokens.present.shape, generator=seeded(data.draw(st.integers(0, 1000)))) < 0.5
    chosen &= tokens.geometry.exists
    indices = [row.nonzero().flatten() for row in chosen]
    assert torch.equal(Given(chosen).select(tokens), chosen & tokens.present)
    assert torch.equal(Given(indices).select(tokens), chosen & tokens.present)


def test_given_tokens_cannot_be_planned():
    with pytest.raises(PruningError, match="cannot be planned"):
        Given(torch.ones(1, 1, dtype=torch.bool)).expected(ImageTokens(picture_of((1, 1, 1)), 1.0))


def test_left_by_keeps_the_survivors_of_the_other_schedule(candidates):
    other = Schedule(Stage(8, Grid(3)), Stage(16, Top(ROPE, 0.1, of="current")))
    selector = SurvivorsOf(Survivors(other))
    answer = torch.tensor([[True, True, False, False]])
    tokens = candidates([[(1, 2, 2)]], present=[[False, True, True, True]], answers={Survivors(other): answer})
    assert sets(selector.select(tokens)) == [{1}]
    assert list(selector.signals()) == [Survivors(other)]
    assert selector.expected(ImageTokens(picture_of((1, 27, 27)), 729.0)) == 8
