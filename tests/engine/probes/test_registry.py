"""A signal is one class and one probe: both may be defined outside the library."""

from dataclasses import dataclass

import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import PruningError, Schedule, Stage, Top, Unprunable
from feathervlm.core import Criterion
from feathervlm.core.signals import LayerStates, RaterAttention, Signal
from feathervlm.engine.probes import registry
from feathervlm.engine.probes.attention import RaterAttentionProbe
from feathervlm.engine.probes.base import Probe
from feathervlm.engine.probes.registry import measures, probe_class

PROMPTS = [tiny.prompt(1, seed=1), tiny.prompt(2, seed=2)]


@dataclass(frozen=True)
class Growth(Signal):
    """How far a layer before the stage moves every visual token: (batch, visual)."""

    @property
    def reads_previous_layer(self):
        return True


@dataclass(frozen=True)
class LeastGrowth(Criterion):
    """Keep the tokens that a layer moves least."""

    def signals(self):
        return (Growth(),)

    def score(self, tokens):
        return -tokens.signals.read(Growth())


@pytest.fixture
def growth(monkeypatch):
    """The probe of `Growth`, registered for one test."""
    monkeypatch.setattr(registry, "_PROBES", dict(registry._PROBES))

    @measures(Growth)
    class GrowthProbe(Probe[Growth]):
        @classmethod
        def check(cls, signal, decoder, family, at):
            if at == 4:
                raise Unprunable("Growth does not like layer 4.")

        def attach(self):
            return self.forward.probe(LayerStates("entry"), self.at).attach()

        def read(self):
            entry = self.forward.probe(LayerStates("entry"), self.at).read()
            hidden, _ = self.forward.stage_inputs
            rows = self.forward.token_rows(self.tokens, self.forward.rows.view())
            states = torch.take_along_dim(hidden, rows[..., None], 1)
            return (states - entry).float().norm(dim=-1)

    return GrowthProbe


def test_every_signal_of_the_library_has_a_probe():
    probe_class(LayerStates())  # loads the modules of all probes
    kinds = set()
    stack = [Signal]
    while stack:
        kind = stack.pop()
        stack += kind.__subclasses__()
        kinds |= {kind} if kind.__module__.startswith("feathervlm.core") and not kind.__subclasses__() else set()
    registered = set(registry._PROBES)
    assert all(registered & set(kind.__mro__) for kind in kinds)
    assert len(kinds) >= 10


def test_the_nearest_class_decides():
    assert probe_class(RaterAttention()) is RaterAttentionProbe


def test_a_signal_without_a_probe_is_refused():
    with pytest.raises(PruningError, match=r"No probe measures Growth\(\)"):
        feathervlm.prune(tiny.llava(), Schedule(Stage(3, Top(LeastGrowth(), 0.5))))


@torch.no_grad()
def test_a_signal_of_ones_own_prunes(growth):
    llava, inputs = tiny.llava(), tiny.batch(*PROMPTS)
    states = llava(**inputs, output_hidden_states=True).hidden_states
    moved = (states[3] - states[2]).norm(dim=-1)
    with feathervlm.prune(llava, Schedule(Stage(3, Top(LeastGrowth(), 0.5)))) as pruning:
        llava(**inputs)
    for sample, row in enumerate(inputs["input_ids"] == tiny.IMAGE):
        scores = -moved[sample][row]
        torch.testing.assert_close(pruning.report.stages[0].scores[sample], scores)
        kept, start = [], 0
        for _ in range(sample + 1):
            image = scores[start : start + tiny.SIDE**2]
            best = image.sort(descending=True, stable=True).indices[: tiny.SIDE**2 // 2]
            kept += sorted((best + start).tolist())
            start += tiny.SIDE**2
        assert pruning.report.stages[0].kept[sample].tolist() == kept


def test_its_check_is_asked_before_any_prompt(growth):
    with pytest.raises(Unprunable, match="does not like layer 4"):
        feathervlm.prune(tiny.llava(), Schedule(Stage(4, Top(LeastGrowth(), 0.5))))
