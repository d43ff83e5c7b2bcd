"""One method on one picture with ever smaller budgets, and where its answer turns."""

from dataclasses import dataclass, field

from feathervlm.app.compare import Step, read_box
from feathervlm.app.jobs import Channel
from feathervlm.app.layers import PlaneView, plane_views
from feathervlm.app.model_cache import ModelCache
from feathervlm.app.picture_store import StoredPicture
from feathervlm.app.state import PageState, check_question
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.families.box_reader import BoxReader
from feathervlm.inference.prompts import Prompt, check_prompt
from feathervlm.inference.streaming import stoppable
from feathervlm.methods import Method, get

BUDGETS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.18, 0.12, 0.09, 0.06, 0.03)


@dataclass(frozen=True, eq=False)
class Point:
    """One budget.

    Attributes:
        budget: Value of the method's budget parameter.
        text: The answer.
        share: Visual tokens per layer over all, averaged over layers.
        flops: FLOPs of the prefill over those of the unpruned model.
        views: Tokens of every layer.
        box: Predicted box in pixels of the picture.
        error: Sentence that says why there is no answer.
    """

    budget: float
    text: str = ""
    share: float = 1.0
    flops: float = 1.0
    views: list[PlaneView] = field(default_factory=list)
    box: Box | None = None
    error: str = ""


@dataclass(eq=False)
class Sweep:
    """A sweep of the budget.

    Attributes:
        state: What was asked for.
        stored: The picture.
        question: The question without white space around it.
        method: The method whose budget changes.
        unpruned: Answer of the unpruned model; None until it is there.
        points: The budgets that were run, the largest first.
        drawn: Drawings of the points that the page has shown.
    """

    state: PageState
    stored: StoredPicture
    question: str
    method: Method
    unpruned: str | None = None
    points: list[Point] = field(default_factory=list)
    drawn: dict[Point, str] = field(default_factory=dict)

    @classmethod
    def of(cls, state: PageState, stored: StoredPicture) -> "Sweep":
        """Check a state.

        Raises:
            PruningError: The question or the method is wrong, or the method has no budget.
        """
        method = get(state.sweep)
        method.with_budget(BUDGETS[0])
        return cls(state, stored, check_question(state.question), method)

    @property
    def turn(self) -> str:
        """Where the answer turns, as a sentence."""
        return turning_point(self.method.budget_parameter or "", self.unpruned, self.points)


def run(sweep: Sweep, models: ModelCache, channel: Channel) -> None:
    """Run a method with every budget.

    Args:
        sweep: The sweep, which is changed.
        models: The model.
        channel: Takes `Step`, and stops the run.

    Raises:
        PruningError: The model or the prompt does not work.
        Stopped: The run was stopped.
    """
    steps = len(BUDGETS) + 1
    answerer = models.get(sweep.state.model, lambda now: channel.emit(Step(0, steps, now)))
    check_prompt(answerer.processor, sweep.question)
    picture, boxes = sweep.stored.picture, BoxReader.of(answerer.loaded)
    length = sweep.state.tokens or answerer.loaded.settings.max_new_tokens
    with stoppable(answerer.model, channel.stop):
        batch = answerer.prepare([Prompt(sweep.question, (picture,))])
        channel.emit(Step(1, steps, "unpruned"))
        sweep.unpruned = answerer.answer(batch, max_new_tokens=length)[0].text
        for number, budget in enumerate(BUDGETS, 2):
            channel.emit(Step(number, steps, f"{sweep.method.budget_parameter}={budget:g}"))
            try:
                answer = answerer.answer(batch, sweep.method.with_budget(budget), max_new_tokens=length)[0]
            except PruningError as error:
                sweep.points.append(Point(budget, error=" ".join(str(error).split())))
                continue
            report = answer.report
            assert report is not None, "there is a method and a picture"
            share = report.average_tokens / report.layout.counts[0]
            views = plane_views(report, picture.size, answerer.processor)
            box = read_box(boxes, answer.text, picture)
            sweep.points.append(Point(budget, answer.text, share, report.flops_ratio, views, box))


def turning_point(parameter: str, unpruned: str | None, points: list[Point]) -> str:
    """Return where the answer turns, as a sentence.

    >>> points = [Point(1.0, "two"), Point(0.5, "two"), Point(0.1, "three")]
    >>> turning_point("keep", "two", points)
    'The answer is that of the unpruned model down to keep=0.5, and turns at keep=0.1.'
    """
    answered = [point for point in points if not point.error]
    if unpruned is None or not answered:
        return ""
    same = [point.text == unpruned for point in answered]
    if all(same):
        return f"The answer is that of the unpruned model down to {parameter}={answered[-1].budget:g}."
    first = same.index(False)
    at = f"{parameter}={answered[first].budget:g}"
    if first == 0:
        return f"The answer differs from that of the unpruned model already at {at}."
    returns = (
        " (it returns at "
        + ", ".join(f"{point.budget:g}" for point, alike in zip(answered[first:], same[first:], strict=True) if alike)
        + ")"
        if any(same[first:])
        else ""
    )
    return (
        f"The answer is that of the unpruned model down to {parameter}={answered[first - 1].budget:g}, "
        f"and turns at {at}{returns}."
    )
