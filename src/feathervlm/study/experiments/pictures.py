"""Experiment 6: pictures chosen by a seed and not by hand, with what each method keeps and answers."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from feathervlm.engine.report.overlay import brightness
from feathervlm.evaluation.samples import Sample, unpack
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.methods import Ensemble, FastV
from feathervlm.study.aggregates import StudyResults
from feathervlm.study.experiments.base import Experiment, ExperimentResult
from feathervlm.study.plan import Plan, feather
from feathervlm.utils.plotting import axes, bare

SCENES = 6
TRUE, ANSWERED = "#00c853", "#ff1744"


class ExamplePictures(Experiment):
    """The paper's Fig. 6."""

    name = "6-pictures"
    title = "Pictures"
    question = "What does that look like? Scenes chosen by the seed, failures included."
    source = "Fig. 6"

    def _runs(self, plan: Plan) -> dict[str, str]:
        runs = {"unpruned": UNPRUNED, "FastV": str(FastV(layer=plan.early))}
        if not plan.quick:
            runs["RoPE-free + uniform"] = str(Ensemble(layer=plan.quarter))
            runs["FEATHER"] = str(feather(plan))
            runs["FEATHER, later"] = str(feather(plan, second=9 / 16))
        else:
            runs["FEATHER"] = str(feather(plan))
        return runs

    def methods(self, plan: Plan) -> list[str]:
        return list(self._runs(plan).values())

    def evaluate(self, plan: Plan, results: StudyResults) -> ExperimentResult:
        runs = self._runs(plan)
        tasks = results.tasks("localization") or results.tasks()
        numbers = [number for task in tasks for number in results.numbers[task]]
        chosen = np.random.default_rng(results.seed).permutation(numbers)[:SCENES]
        figure, plots = axes(len(runs), rows=len(chosen), width=2.1, height=2.35 * len(chosen))
        for row, number in enumerate(map(int, chosen)):
            question, picture = results.item(number)
            for column, (name, spec) in enumerate(runs.items()):
                plot = plots[row * len(runs) + column]
                sample = results.sample(spec, number)
                _show(plot, np.asarray(picture.convert("RGB")), sample)
                for box, colour in ((question.box, TRUE), (sample.box, ANSWERED)):
                    if box:
                        _outline(plot, box, colour)
                plot.set_title(f"{name}: {_verdict(sample)}", fontsize=7)
            plots[row * len(runs)].set_xlabel(_wrapped(question.prompt), fontsize=6.5)
        caption = (
            "Questions drawn from all localization questions by the seed. Bright: cells that are kept by the last "
            "stage; darkest: what the model is not shown. Green: the true box; red: the answer."
        )
        return ExperimentResult([], [], {"pictures": (figure, caption)})


def _show(plot: Axes, pixels: np.ndarray, sample: Sample) -> None:
    height, width = pixels.shape[:2]
    light = np.ones((height, width))
    if sample.shape is not None:
        covered = sample.covers or (0.0, 0.0, float(width), float(height))
        light = brightness(unpack(sample.kept[-1], sample.shape)[0], (width, height), covered, 0.25)
    plot.imshow((pixels * light[..., None]).astype(np.uint8))
    bare(plot)


def _outline(plot: Axes, box: tuple[float, float, float, float], colour: str) -> None:
    left, top, right, bottom = box
    plot.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.5))


def _verdict(sample: Sample) -> str:
    if sample.iou is not None:
        return f"IoU {sample.iou:.2f}" if sample.box else "no box"
    return "right" if sample.right else "wrong"


def _wrapped(text: str, width: int = 34) -> str:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) >= width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line][:3])
