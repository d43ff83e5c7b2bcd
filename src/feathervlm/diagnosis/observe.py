"""One picture after the other under a method: which tokens stay, and where the rotary embedding alone would look.

Knows models, reports and priors; keeps nothing but what `spread` needs.
"""

from typing import Any

import torch
from PIL import Image

from feathervlm.core.schedule import Schedule
from feathervlm.core.signals import Attention
from feathervlm.diagnosis.rope_prior import Floats, NoPrior, heard_tables, prior_layer, prior_map
from feathervlm.diagnosis.summary import Seen
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.report.report import Report
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.prompts import Prompt
from feathervlm.methods import Method


class Patient:
    """A model under a method, shown one picture after the other."""

    def __init__(self, answerer: Answerer, method: Method | Schedule, schedule: Schedule, prompt: str) -> None:
        self.answerer, self.model, self.method, self.prompt = answerer, answerer.model, method, prompt
        decoder = DecoderView(self.model)
        self.layers = schedule.at_layers(len(decoder.layers))
        self.why_no_prior: list[str | None] = []
        self.scoring: list[int | None] = []
        moved = False
        for at, stage in zip(self.layers, schedule, strict=True):
            own = any(isinstance(signal, Attention) and signal.layer == "K" for signal in stage.signals())
            layer, reason = None, None
            try:
                if moved:
                    raise NoPrior("An earlier stage moves positions.")
                layer = prior_layer(decoder, at, own)
            except NoPrior as error:
                reason = str(error)
            self.scoring.append(layer)
            self.why_no_prior.append(reason)
            moved = moved or stage.positions != "preserve"

    def see(self, name: str, picture: Image.Image, draw: bool) -> tuple[Seen, list[str]]:
        """What is kept of a picture, and the notes of the report.

        Raises:
            PruningError: if the model or the picture cannot be pruned.
        """
        layers = [layer for layer in self.scoring if layer is not None]
        with heard_tables(self.model, layers) as tables:
            report = self.answerer.look([Prompt(self.prompt, (picture,))], self.method)
        stages = range(len(self.layers))
        priors = [self._prior(report, tables, stage) for stage in stages]
        overlay = None
        if draw and report.stages:
            overlay = report.overlay(picture, processor=self.answerer.processor)
        seen = Seen(
            name=name,
            masks=[report.grid(stage=stage).numpy() for stage in stages],
            kept=[tuple(stage.kept[0].tolist()) for stage in report.stages],
            tokens=report.record.layout.counts[0],
            priors=priors,
            foresight=[_foresight(report, stage) for stage in stages],
            average_tokens=report.average_tokens,
            flops_ratio=report.flops_ratio,
            overlay=overlay,
        )
        return seen, report.notes

    def _prior(self, report: Report, tables: dict[int, Any], stage: int) -> Floats | None:
        layer = self.scoring[stage]
        if layer is None:
            return None
        try:
            return prior_map(report.record, tables.get(layer))
        except NoPrior as error:
            self.why_no_prior[stage] = str(error)
            return None


def _foresight(report: Report, stage: int) -> tuple[float, float] | None:
    """Of the tokens that a stage keeps, the share that were the best survivors by the scores of the one before."""
    if not stage:
        return None
    earlier, later = report.stages[stage - 1], report.stages[stage].kept[0]
    if earlier.scores is None or not len(later):
        return None
    entered = report.stages[stage - 2].kept[0] if stage > 1 else torch.arange(report.record.layout.counts[0])
    survived = earlier.kept[0]
    scores = earlier.scores[0][torch.isin(entered, survived)]
    best = survived[scores.argsort(descending=True, stable=True)[: len(later)]]
    return float(torch.isin(later, best).float().mean()), len(later) / len(survived)
