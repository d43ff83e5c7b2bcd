"""One picture at a time under a method: which tokens stay, and where the rotary embedding alone would put attention."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from feathervlm.core.schedule import Schedule
from feathervlm.diagnosis.mask_statistics import Floats, Mask
from feathervlm.diagnosis.rope_prior import NoPrior, prior_layer, prior_map, recorded_tables
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.report.report import Report
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.prompts import Prompt
from feathervlm.methods import Method


@dataclass(frozen=True, eq=False)
class Observation:
    """What a method keeps of one picture.

    Attributes:
        name: Name of the picture.
        masks: Kept cells of the finest grid after each stage, bool (frames, rows, cols).
        kept: Indices of the tokens kept by each stage, over all grids.
        tokens: Number of visual tokens of the prompt.
        priors: RoPE prior of each stage, (frames, rows, cols); None if there is none.
        foresight: For each stage the share of its tokens that the previous stage ranked best, and the share expected by
            chance; None if the previous stage has no scores.
        average_tokens: Visual tokens per layer.
        flops_ratio: FLOPs of the prefill over those of the unpruned one.
        overlay: Picture with the kept patches; None if it is not drawn.
    """

    name: str
    masks: list[Mask]
    kept: list[tuple[int, ...]]
    tokens: int
    priors: list[Floats | None]
    foresight: list[tuple[float, float] | None]
    average_tokens: float
    flops_ratio: float
    overlay: Image.Image | None = None


class PictureObserver:
    """Shows a model pictures under a method.

    Args:
        answerer: The model with its processor.
        method: Method or schedule.
        prompt: Text that is asked about every picture.

    Attributes:
        schedule: Schedule of the method.
        layers: Layers of the stages.
        why_no_prior: Reason why a stage has no RoPE prior, or None, for each stage.
    """

    def __init__(self, answerer: Answerer, method: Method | Schedule, prompt: str) -> None:
        self.answerer, self.model, self.method, self.prompt = answerer, answerer.model, method, prompt
        self.schedule = method.schedule() if isinstance(method, Method) else method
        decoder = DecoderView(self.model)
        self.layers = self.schedule.at_layers(len(decoder.layers))
        self.why_no_prior: list[str | None] = []
        self._prior_layers: list[int | None] = []
        moved = False
        for at, stage in zip(self.layers, self.schedule, strict=True):
            own = any(signal.attends and not signal.reads_previous_layer for signal in stage.signals())
            layer, reason = None, None
            try:
                if moved:
                    raise NoPrior("An earlier stage moves positions.")
                layer = prior_layer(decoder, at, own)
            except NoPrior as error:
                reason = str(error)
            self._prior_layers.append(layer)
            self.why_no_prior.append(reason)
            moved = moved or stage.positions != "preserve"

    def observe(self, name: str, picture: Image.Image, draw: bool) -> tuple[Observation, list[str]]:
        """Return what is kept of a picture, and the notes of the report.

        Args:
            name: Name of the picture.
            picture: The picture.
            draw: Whether to draw the kept patches.

        Raises:
            PruningError: The model or the picture cannot be pruned.
        """
        layers = [layer for layer in self._prior_layers if layer is not None]
        with recorded_tables(self.model, layers) as tables:
            report = self.answerer.look([Prompt(self.prompt, (picture,))], self.method)
        stages = range(len(self.layers))
        overlay = None
        if draw and report.stages:
            overlay = report.overlay(picture, processor=self.answerer.processor)
        observation = Observation(
            name=name,
            masks=[report.grid(stage=stage).numpy() for stage in stages],
            kept=[tuple(stage.kept[0].tolist()) for stage in report.stages],
            tokens=report.record.layout.counts[0],
            priors=[self._prior(report, tables, stage) for stage in stages],
            foresight=[_foresight(report, stage) for stage in stages],
            average_tokens=report.average_tokens,
            flops_ratio=report.flops_ratio,
            overlay=overlay,
        )
        return observation, report.notes

    def _prior(self, report: Report, tables: dict[int, Any], stage: int) -> Floats | None:
        layer = self._prior_layers[stage]
        if layer is None:
            return None
        try:
            return prior_map(report.record, tables.get(layer))
        except NoPrior as error:
            self.why_no_prior[stage] = str(error)
            return None


def _foresight(report: Report, stage: int) -> tuple[float, float] | None:
    """Return the share of a stage's tokens that the previous stage ranked best, and the share expected by chance."""
    if not stage:
        return None
    previous, kept = report.stages[stage - 1], report.stages[stage].kept[0]
    if previous.scores is None or not len(kept):
        return None
    survived = report.stages[stage].entered[0]
    scores = previous.scores[0][torch.isin(previous.entered[0], survived)]
    best = survived[scores.argsort(descending=True, stable=True)[: len(kept)]]
    return float(torch.isin(kept, best).float().mean()), len(kept) / len(survived)
