"""What every layer sees of a picture: which tokens are there, and what attention scores them with and without RoPE."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from feathervlm.core.criteria.attention import LastTokenAttention
from feathervlm.core.layout import Box
from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.selectors.basic import Top
from feathervlm.diagnosis.rope_prior import on_grid
from feathervlm.engine.report.overlay import inside
from feathervlm.engine.report.report import Report, finest
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.prompts import Prompt

DROPPED, MERGED, KEPT, FROZEN, WAITING = 0, 1, 2, 3, 4
"""What has become of a token in a layer: it left, its content went into a kept token, it runs, it is read and not
updated, or it may come back."""
LEFT = {"drop": DROPPED, "freeze": FROZEN, "wait": WAITING}


@dataclass(frozen=True, eq=False)
class PlaneView:
    """One grid of tokens over a picture, layer by layer.

    Attributes:
        box: Part of the picture that the grid covers, in pixels.
        states: What has become of every cell, such as `KEPT`, of shape (layers, rows, cols).
    """

    box: Box
    states: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """The attention of the last token that decides what enters a layer.

    Attributes:
        box: Part of the picture that the grid covers, in pixels.
        scores: Scores of the tokens of the layer before; NaN where there is no token; of shape (rows, cols).
    """

    box: Box
    scores: NDArray[np.float32]


ScoreMaps = dict[int, ScoreMap]
"""The map before each layer that has one."""


def plane_views(report: Report, size: tuple[int, int], processor: Any) -> list[PlaneView]:
    """Return what every layer sees of the first picture of a report, the grid with the most tokens first.

    Args:
        report: Report of one prompt with a picture.
        size: (width, height) of the picture.
        processor: Processor that prepared the prompt.
    """
    states = token_states(report)
    planes, shown = report.layout.pictures[0][0], report.record.shown(processor, size)

    def on_plane(number: int) -> NDArray[np.uint8]:
        return np.stack([on_grid(report.layout, layer, plane=number)[0] for layer in states])

    return [PlaneView(inside(shown, planes[number].box), on_plane(number)) for number in finest(planes)]


def token_states(report: Report) -> NDArray[np.uint8]:
    """Return what has become of every visual token in every layer, of shape (layers, tokens)."""
    total, depth = report.layout.counts[0], len(report.tokens_per_layer[0])
    states = np.full((depth, total), KEPT, np.uint8)
    for stage in report.stages:
        if stage.layer == depth:
            break  # a stage at the end cuts caches
        kept, before = stage.kept[0].numpy(), states[stage.layer]
        present = ~np.isin(before, (DROPPED, MERGED))
        after = np.where(present, LEFT[stage.leave], before).astype(np.uint8)
        if stage.groups is not None:
            entered = np.flatnonzero(present)
            after[entered[stage.groups[0].numpy() >= 0]] = MERGED
        after[kept] = KEPT
        states[stage.layer :] = after
    return states


def score_maps(answerer: Answerer, prompt: Prompt, schedule: Schedule | None, depth: int, *, rope: bool) -> ScoreMaps:
    """Measure the attention of the last token to the tokens that are there, before every layer.

    The schedule runs as it is, with a stage that scores and keeps everything before all other layers.

    Args:
        answerer: The model.
        prompt: One prompt with a picture.
        schedule: Schedule that prunes; None for the unpruned model.
        depth: Number of layers.
        rope: Whether q and k are rotated for the score.

    Raises:
        PruningError: The model cannot give these scores.
    """
    report = answerer.look([prompt], scoring(schedule, depth, rope))
    size = prompt.images[0].size
    planes, shown = report.layout.pictures[0][0], report.record.shown(answerer.processor, size)
    box = inside(shown, planes[finest(planes)[0]].box)
    maps, entered = {}, torch.arange(report.layout.counts[0])
    for stage in report.stages:
        if stage.scores is not None and stage.layer > 0:
            values = np.full(report.layout.counts[0], np.nan, np.float32)
            values[entered.numpy()] = stage.scores[0].numpy()
            maps[stage.layer] = ScoreMap(box, on_grid(report.layout, values)[0])
        if stage.leave != "drop":
            break
        entered = stage.kept[0]
    return maps


def scoring(schedule: Schedule | None, depth: int, rope: bool) -> Schedule:
    """Return a schedule that prunes as another one does, and scores by attention before every layer but the first.

    After a stage whose tokens wait or are frozen there are none, for one more stage would bring the tokens back.
    """
    everything = Top(LastTokenAttention(rope=rope), keep=1.0)
    own = {} if schedule is None else dict(zip(schedule.at_layers(depth), schedule, strict=True))
    held = min((layer for layer, stage in own.items() if stage.leave != "drop"), default=depth)
    stages = []
    for layer in range(depth + 1):
        stage = own.get(layer)
        if layer > held or layer == depth:
            stages += [] if stage is None else [stage]
        elif layer and stage is None:
            stages.append(Stage(layer, everything))
        elif stage is not None:
            # The first criterion that is read is the one that a report shows, so everything comes first.
            select = everything & stage.select if layer else stage.select
            stages.append(replace(stage, at=layer, select=select))
    return Schedule(*stages, encoder=None if schedule is None else schedule.encoder)
