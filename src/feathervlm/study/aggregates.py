"""The answers of a study as numbers with intervals: accuracy by task and kind, kept tokens, cost."""

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

HEAT_MAP_ROUNDS = 400
"""Rounds of the bootstrap of a whole heat map."""
Mask = NDArray[np.bool_]
"""Kept cells of one picture's finest grid: (frames, rows, cols)."""


@dataclass(frozen=True, eq=False)
class TaskAnswers:
    """The answers of one method to one task, in the order of the questions."""

    samples: Sequence[Sample]

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """The score of every answer from 0 to 1, shape (n,)."""
        return np.array([sample.score for sample in self.samples], np.float64)

    @cached_property
    def top(self) -> NDArray[np.bool_]:
        """Which targets lie in the top half, shape (n,); False without a target."""
        return np.array([bool(sample.top) for sample in self.samples])

    @cached_property
    def masks(self) -> list[list[Mask]]:
        """The kept cells of every picture, for each stage."""
        stages = max((len(sample.kept) for sample in self.samples), default=0)
        return [
            [unpack(sample.kept[stage], sample.shape) for sample in self.samples if sample.shape is not None]
            for stage in range(stages)
        ]

    def recall(self, stage: int) -> NDArray[np.float64]:
        """Return the share of the target's cells that a stage keeps, shape (n,); NaN without a target."""
        shares = []
        for sample in self.samples:
            if sample.target is None or sample.shape is None:
                shares.append(np.nan)
            else:
                mask = unpack(sample.kept[stage], sample.shape)
                shares.append(mask[target_cells(sample.target, sample.shape)].mean())
        return np.array(shares, np.float64)


def target_cells(target: Sequence[float], shape: tuple[int, int, int]) -> Mask:
    """Return a mask of the cells whose centre lies in a box, or of the cell at the box's centre if there is none.

    Args:
        target: Box (left, top, right, bottom) in shares of the grid.
        shape: Shape (frames, rows, cols) of the grid.
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


class StudyResults:
    """The answers of all methods of a study.

    Args:
        kinds: Kind of every task.
        tasks: Task of every question.
        runs: Samples by question for each method.
        item: Function that returns a question with its picture.
        prior: RoPE prior of shape (frames, rows, cols); None if there is none.
        no_prior: Reason why there is no prior.
        seed: Seed of the bootstrap and of all random choices.
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
        self.numbers = {task: own for task, own in numbers.items() if own}
        self.bootstrap = Bootstrap({task: len(own) for task, own in self.numbers.items()}, seed=seed)
        self._samples = runs
        self.runs = {
            method: {task: TaskAnswers([samples[number] for number in own]) for task, own in self.numbers.items()}
            for method, samples in runs.items()
        }

    def sample(self, method: str, number: int) -> Sample:
        """Return the answer of a method to one question."""
        return self._samples[method][number]

    def tasks(self, kind: Kind | None = None) -> list[str]:
        """Return the tasks that were asked, of one kind or all."""
        return [task for task in self.numbers if kind is None or self.kinds[task] == kind]

    def accuracy(self, method: str, task: str) -> Estimate:
        """Return the mean score of the answers to a task."""
        return self._share(method, task)

    def mean(self, method: str, kind: Kind) -> Estimate:
        """Return the mean accuracy over the tasks of a kind, which all have the same weight."""
        return mean([self.accuracy(method, task) for task in self.tasks(kind)])

    def relative(self, method: str, kind: Kind) -> Estimate:
        """Return the `mean` of a method over that of the unpruned model, on the same questions."""
        return self.mean(method, kind) / self.mean(UNPRUNED, kind)

    def half(self, method: str, top: bool) -> Estimate:
        """Return the localization accuracy on targets in the top, or the bottom, half of the picture."""
        shares = [self._share(method, task, self.runs[method][task].top == top) for task in self.tasks("localization")]
        return mean([share for share in shares if np.isfinite(share.value)])

    def _share(self, method: str, task: str, among: NDArray[np.bool_] | None = None) -> Estimate:
        return self.bootstrap.share(method, task, self.runs[method][task].scores, among)

    def of_masks(self, method: str, statistic: Callable[[Mask], float], stage: int = -1) -> Estimate:
        """Return the mean over all questions of a statistic of their masks."""
        return mean(
            [
                self.bootstrap.mean(task, np.array([statistic(mask) for mask in answers.masks[stage]]))
                for task, answers in self.runs[method].items()
            ]
        )

    def of_heat(
        self, method: str, statistic: Callable[[NDArray[np.float64]], float], shape: tuple[int, ...], stage: int = -1
    ) -> Estimate:
        """Return a statistic of the heat map of a method: the share of questions that keep each cell, mean over tasks.

        Args:
            method: Spec of the method.
            statistic: Function of a map (rows, cols).
            shape: Shape (rows, cols) of the map.
            stage: Stage of the method.
        """
        cells = {
            task: np.stack([heat_map([mask], (shape[0], shape[1])).ravel() for mask in answers.masks[stage]])
            for task, answers in self.runs[method].items()
        }
        value = np.mean([masks.mean(0) for masks in cells.values()], 0).reshape(shape)
        drawn = np.mean([self.bootstrap.means(task, masks, HEAT_MAP_ROUNDS) for task, masks in cells.items()], 0)
        return Estimate(statistic(value), np.array([statistic(heat.reshape(shape)) for heat in drawn]))

    def masks(self, method: str, stage: int = -1) -> list[Mask]:
        """Return the masks of all questions."""
        return [mask for answers in self.runs[method].values() for mask in answers.masks[stage]]

    def recall(self, method: str, stage: int = -1) -> Estimate:
        """Return the share of the target's cells that is kept, mean over localization questions."""
        return mean(
            [self.bootstrap.mean(task, self.runs[method][task].recall(stage)) for task in self.tasks("localization")]
        )

    def row(self, method: str) -> dict[str, Any]:
        """Return all numbers of one method as plain values, ready for JSON."""
        tokens, flops = (round(number, 4) if np.isfinite(number) else None for number in self.cost(method))
        row: dict[str, Any] = {"method": method, "average_tokens": tokens, "flops_ratio": flops}
        stages = max((len(answers.masks) for answers in self.runs[method].values()), default=0)
        row["bottom_third"] = [self.of_masks(method, bottom_third, stage).to_dict() for stage in range(stages)]
        for kind in KINDS:
            if self.tasks(kind):
                row[kind] = self.mean(method, kind).to_dict()
                row[f"{kind}_change"] = (self.mean(method, kind) - self.mean(UNPRUNED, kind)).to_dict()
        if self.tasks("localization"):
            row |= {"top_half": self.half(method, True).to_dict(), "bottom_half": self.half(method, False).to_dict()}
        row["tasks"] = {task: self.accuracy(method, task).to_dict() for task in self.tasks()}
        return row

    def cost(self, method: str) -> tuple[float, float]:
        """Return visual tokens per layer and FLOPs ratio, mean over questions; NaN for the unpruned model."""
        samples = [sample for answers in self.runs[method].values() for sample in answers.samples]
        tokens = [sample.tokens for sample in samples if sample.tokens is not None]
        flops = [sample.flops for sample in samples if sample.flops is not None]
        return (float(np.mean(tokens)), float(np.mean(flops))) if tokens and flops else (np.nan, np.nan)
