"""The answers of a study as numbers: accuracy by task and kind, what was kept, what it cost; all with intervals.

Knows records and estimates; knows no experiment and no model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from feathervlm.diagnosis.mask_statistics import bottom_third, heat_map
from feathervlm.evaluation.samples import Sample, unpack
from feathervlm.evaluation.statistics import Bootstrap, Estimate, mean
from feathervlm.evaluation.tasks.base import KINDS, Kind, Question
from feathervlm.inference.model_spec import UNPRUNED

HEATS = 400
"""Draws of a heat map, each of which is looked at as a whole."""
Mask = NDArray[np.bool_]
"""Kept cells of one picture's finest grid: (frames, rows, cols)."""


@dataclass(frozen=True, eq=False)
class Answers:
    """One method on one task, question by question."""

    records: Sequence[Sample]

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(n,) which answers are right."""
        return np.array([record.right for record in self.records])

    @cached_property
    def top(self) -> NDArray[np.bool_]:
        """(n,) whether the target is in the top half; False without a target."""
        return np.array([bool(record.top) for record in self.records])

    @cached_property
    def masks(self) -> list[list[Mask]]:
        """For each stage the kept cells of every picture."""
        stages = max((len(record.kept) for record in self.records), default=0)
        return [
            [unpack(record.kept[stage], record.shape) for record in self.records if record.shape is not None]
            for stage in range(stages)
        ]

    def recall(self, stage: int) -> NDArray[np.float64]:
        """(n,) the share of the target's cells that is left after a stage; not a number without a target."""
        found = []
        for record in self.records:
            if record.target is None or record.shape is None:
                found.append(np.nan)
            else:
                mask = unpack(record.kept[stage], record.shape)
                found.append(mask[target_cells(record.target, record.shape)].mean())
        return np.array(found, np.float64)


def target_cells(target: Sequence[float], shape: tuple[int, int, int]) -> Mask:
    """The cells whose middle lies in the box; if there is none, the one that holds the box's middle.

    Args:
        target: (left, top, right, bottom) in shares of the grid.
        shape: (frames, rows, cols).
    """
    _, rows, cols = shape
    left, top, right, bottom = target
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(cols) + 0.5) / cols
    inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None]
    if not inside.any():
        row, col = (
            int(np.clip((a + b) / 2 * side, 0, side - 1)) for a, b, side in ((top, bottom, rows), (left, right, cols))
        )
        inside[row, col] = True
    return np.broadcast_to(inside, shape)


class Results:
    """All runs of a study.

    Args:
        kinds: every task with its kind.
        tasks: the task of every question.
        runs: for each method its records by question.
        item: returns a question with its picture.
        prior: what RoPE alone says of every cell of the grid, (frames, rows, cols); None if there is none.
        no_prior: why, if so.
        seed: of the bootstrap and of whatever else is drawn.
    """

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        tasks: Sequence[str],
        runs: Mapping[str, Mapping[int, Sample]],
        item: Callable[[int], tuple[Question, Image.Image]],
        prior: NDArray[np.float64] | None = None,
        no_prior: str = "",
        seed: int = 0,
    ) -> None:
        self.kinds, self.item, self.prior, self.no_prior, self.seed = kinds, item, prior, no_prior, seed
        numbers: dict[str, list[int]] = {task: [] for task in kinds}
        for number, task in enumerate(tasks):
            numbers[task].append(number)
        self.numbers = {task: found for task, found in numbers.items() if found}
        self.bootstrap = Bootstrap({task: len(found) for task, found in self.numbers.items()}, seed=seed)
        self._records = runs
        self.runs = {
            method: {task: Answers([records[number] for number in found]) for task, found in self.numbers.items()}
            for method, records in runs.items()
        }

    def record(self, method: str, number: int) -> Sample:
        """The answer to one question."""
        return self._records[method][number]

    def tasks(self, kind: Kind | None = None) -> list[str]:
        """The tasks that were asked, of one kind or all."""
        return [task for task in self.numbers if kind is None or self.kinds[task] == kind]

    def accuracy(self, method: str, task: str) -> Estimate:
        """The share of right answers to a task."""
        return self.bootstrap.share(method, task, self.runs[method][task].right)

    def mean(self, method: str, kind: Kind) -> Estimate:
        """Mean accuracy over the tasks of a kind, in which every task counts alike."""
        return mean([self.accuracy(method, task) for task in self.tasks(kind)])

    def relative(self, method: str, kind: Kind) -> Estimate:
        """`mean` over that of the unpruned model, on the same questions."""
        return self.mean(method, kind) / self.mean(UNPRUNED, kind)

    def half(self, method: str, top: bool) -> Estimate:
        """Localization accuracy on targets in the top, or the bottom, half of the picture."""
        found = []
        for task in self.tasks("localization"):
            answers = self.runs[method][task]
            found.append(self.bootstrap.share(method, task, answers.right, answers.top == top))
        return mean([one for one in found if np.isfinite(one.value)])

    def of_masks(self, method: str, statistic: Callable[[Mask], float], stage: int = -1) -> Estimate:
        """The mean over all questions of a number that kept cells give."""
        return mean(
            [
                self.bootstrap.mean(task, np.array([statistic(mask) for mask in answers.masks[stage]]))
                for task, answers in self.runs[method].items()
            ]
        )

    def of_heat(
        self, method: str, statistic: Callable[[NDArray[np.float64]], float], shape: tuple[int, ...], stage: int = -1
    ) -> Estimate:
        """A number that the heat map of a run gives: the share of questions that keep each cell, tasks counting alike.

        Args:
            method: which run.
            statistic: of a map (rows, cols).
            shape: (rows, cols) of the map.
            stage: of the method.
        """
        cells = {
            task: np.stack([heat_map([mask], (shape[0], shape[1])).ravel() for mask in answers.masks[stage]])
            for task, answers in self.runs[method].items()
        }
        value = np.mean([found.mean(0) for found in cells.values()], 0).reshape(shape)
        drawn = np.mean([self.bootstrap.means(task, found, HEATS) for task, found in cells.items()], 0)
        return Estimate(statistic(value), np.array([statistic(heat.reshape(shape)) for heat in drawn]))

    def masks(self, method: str, stage: int = -1) -> list[Mask]:
        """The kept cells of all questions."""
        return [mask for answers in self.runs[method].values() for mask in answers.masks[stage]]

    def recall(self, method: str, stage: int = -1) -> Estimate:
        """The share of the target's cells that is left, mean over localization questions."""
        return mean(
            [self.bootstrap.mean(task, self.runs[method][task].recall(stage)) for task in self.tasks("localization")]
        )

    def row(self, method: str) -> dict[str, Any]:
        """All about one run as plain numbers, ready for JSON."""
        tokens, flops = (round(number, 4) if np.isfinite(number) else None for number in self.cost(method))
        found: dict[str, Any] = {"method": method, "average_tokens": tokens, "flops_ratio": flops}
        stages = max((len(answers.masks) for answers in self.runs[method].values()), default=0)
        found["bottom_third"] = [self.of_masks(method, bottom_third, stage).to_dict() for stage in range(stages)]
        for kind in KINDS:
            if self.tasks(kind):
                found[kind] = self.mean(method, kind).to_dict()
                found[f"{kind}_change"] = (self.mean(method, kind) - self.mean(UNPRUNED, kind)).to_dict()
        if self.tasks("localization"):
            found |= {"top_half": self.half(method, True).to_dict(), "bottom_half": self.half(method, False).to_dict()}
        found["tasks"] = {task: self.accuracy(method, task).to_dict() for task in self.tasks()}
        return found

    def cost(self, method: str) -> tuple[float, float]:
        """Visual tokens per layer and the FLOPs ratio, mean over questions; not a number for the unpruned model."""
        records = [record for answers in self.runs[method].values() for record in answers.records]
        tokens = [record.tokens for record in records if record.tokens is not None]
        flops = [record.flops for record in records if record.flops is not None]
        return (float(np.mean(tokens)), float(np.mean(flops))) if tokens and flops else (np.nan, np.nan)
