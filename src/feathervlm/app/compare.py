"""One question about one picture under several methods side by side: answers, times, kept tokens, scores, warnings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from PIL import Image

from feathervlm.app.jobs import Channel
from feathervlm.app.layers import PlaneView, ScoreMaps, plane_views, score_maps
from feathervlm.app.model_cache import ModelCache
from feathervlm.app.picture_store import StoredPicture
from feathervlm.app.state import PageState, check_methods, check_question
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.diagnosis.findings import Level, grouped
from feathervlm.diagnosis.run import diagnose
from feathervlm.embedded.questions import SceneQuestion, grade
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.report.report import Report
from feathervlm.families.box_reader import BoxReader
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.inference.prompts import Prompt, check_prompt, has_template
from feathervlm.inference.streaming import stoppable
from feathervlm.methods import Method, get

CHANCE = ("few", "well")
"""Findings of a diagnosis that say nothing about one picture."""


@dataclass(frozen=True)
class Step:
    """A step of a run: its number, how many there are, and what happens in it."""

    number: int
    steps: int
    text: str


@dataclass(frozen=True)
class Changed:
    """A column has changed: its text, or the whole of it."""

    column: int
    whole: bool = False


@dataclass(eq=False)
class Column:
    """What is known about one method.

    Attributes:
        name: Spec of the method, or "unpruned".
        method: The method; None for the unpruned model and for a spec that is wrong.
        text: The answer, or its beginning.
        tokens: Number of new tokens; 0 until the answer is whole.
        error: Sentence that says why there is no answer.
        seconds: Times to the first token; the first one counts only as long as there are no others.
        per_layer: Visual tokens in every layer; empty until known.
        flops: FLOPs of the prefill over those of the unpruned model.
        kv: Keys and values over those of the unpruned model.
        selection: Seconds of scoring and selecting.
        views: Tokens of every layer; empty if all are there.
        maps: Score maps, with RoPE and without it.
        why_no_maps: Sentence that says why there are none.
        findings: (level, texts, remedy) of the diagnosis; None until it was made.
        notes: Notes of the report.
        box: Predicted box in pixels of the picture.
        right: Whether the answer is right, and its IoU; None if no right answer is known.
    """

    name: str
    method: Method | None = None
    text: str = ""
    tokens: int = 0
    error: str = ""
    seconds: list[float] = field(default_factory=list)
    per_layer: list[int] = field(default_factory=list)
    flops: float = 1.0
    kv: float = 1.0
    selection: float = 0.0
    views: list[PlaneView] = field(default_factory=list)
    maps: dict[bool, ScoreMaps] = field(default_factory=dict)
    why_no_maps: str = ""
    findings: list[tuple[Level, list[str], str]] | None = None
    notes: list[str] = field(default_factory=list)
    box: Box | None = None
    right: tuple[bool, float | None] | None = None

    @property
    def pruned(self) -> bool:
        """Whether the column is that of a method."""
        return self.name != UNPRUNED

    @property
    def first_token(self) -> float | None:
        """Seconds to the first token: the median of the timed runs, or the only run."""
        return median(self.seconds[1:] or self.seconds) if self.seconds else None

    @property
    def warmed(self) -> bool:
        """Whether the time is that of runs after a warm-up."""
        return len(self.seconds) > 1


@dataclass(eq=False)
class Comparison:
    """A run of several methods on one question.

    Attributes:
        state: What was asked for.
        stored: The picture.
        question: The question without white space around it.
        depth: Number of layers of the language model; 0 until it is loaded.
        total: Number of visual tokens; 0 until a method was run.
        columns: The unpruned model and the methods.
        settings: What the Python lines and the command have to say.
    """

    state: PageState
    stored: StoredPicture
    question: str
    depth: int = 0
    total: int = 0
    columns: list[Column] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, state: PageState, stored: StoredPicture) -> "Comparison":
        """Make the columns of a state; a spec that is wrong says so in its column.

        Raises:
            PruningError: The question or the number of methods is wrong.
        """
        question = check_question(state.question)
        columns = [Column(UNPRUNED)]
        for spec in check_methods(state.methods):
            if spec not in (UNPRUNED, "none"):
                columns.append(_column(spec))
        return cls(state, stored, question, columns=columns)

    @property
    def truth(self) -> SceneQuestion | None:
        """The right answer, if the question is the one about an example scene."""
        asked = self.stored.question
        return asked if asked is not None and asked.text == self.question else None

    @property
    def picture(self) -> Image.Image:
        """The picture."""
        return self.stored.picture


def run(comparison: Comparison, models: ModelCache, channel: Channel) -> None:
    """Fill the columns of a comparison.

    Every answer comes first, then the times, then the score maps and the diagnosis. What goes wrong with one method
    is said in its column.

    Args:
        comparison: The comparison, which is changed.
        models: The model.
        channel: Takes `Step` and `Changed`, and stops the run.

    Raises:
        PruningError: The model or the prompt does not work.
        Stopped: The run was stopped.
    """
    state = comparison.state
    each = 1 + state.rounds + (2 if state.maps else 0)
    steps = each * len(comparison.columns) + len(comparison.columns) - 1
    answerer = models.get(state.model, lambda now: channel.emit(Step(0, steps, now)))
    check_prompt(answerer.processor, comparison.question)
    _Run(comparison, answerer, channel, steps).whole()


class _Run:
    """The steps of a run."""

    def __init__(self, comparison: Comparison, answerer: Answerer, channel: Channel, steps: int) -> None:
        self.it, self.answerer, self.channel, self.steps, self.number = comparison, answerer, channel, steps, 0
        self.prompt = Prompt(comparison.question, (comparison.picture,))
        self.length = comparison.state.tokens or answerer.loaded.settings.max_new_tokens
        self.boxes = BoxReader.of(answerer.loaded)
        comparison.depth = len(DecoderView(answerer.model).layers)
        comparison.settings = {
            "tokens": self.length,
            "dtype": str(answerer.model.dtype).removeprefix("torch."),
            "device": str(answerer.model.device),
            "template": has_template(answerer.processor),
        }

    def whole(self) -> None:
        with stoppable(self.answerer.model, self.channel.stop):
            self.batch = self.answerer.prepare([self.prompt])
            self.each("answering", self.answer)
            for number in range(self.it.state.rounds):
                self.each(f"timed run {number + 1} of {self.it.state.rounds}", self.time)
            if self.it.state.maps:
                self.each("scores with RoPE", lambda column, at: self.score(column, rope=True))
                self.each("scores without RoPE", lambda column, at: self.score(column, rope=False))
            self.each("looking for warnings", self.look, pruned_only=True)

    def each(self, what: str, do: Callable[[Column, int], None], pruned_only: bool = False) -> None:
        """Do one step for every column that has no error."""
        for at, column in enumerate(self.it.columns):
            if pruned_only and not column.pruned:
                continue
            self.number += 1
            if column.error:
                continue
            self.channel.emit(Step(self.number, self.steps, f"{column.name}: {what}"))
            with _into(column):
                do(column, at)

    def answer(self, column: Column, at: int) -> None:
        def listen(text: str) -> None:
            column.text = text
            self.channel.emit(Changed(at))

        answer = self.answerer.answer(self.batch, column.method, max_new_tokens=self.length, timed=True, listen=listen)[
            0
        ]
        column.text, column.tokens = answer.text, answer.tokens
        column.seconds.append(answer.first_token_seconds or 0.0)
        column.box = read_box(self.boxes, answer.text, self.it.picture)
        if self.it.truth is not None and self.answerer.loaded.embedded:
            column.right = grade(self.it.truth, answer.text)
        report = answer.report
        if report is not None and report.pruned:
            self.read(column, report)
        self.channel.emit(Changed(at, whole=True))

    def read(self, column: Column, report: Report) -> None:
        self.it.total = report.layout.counts[0]
        column.per_layer, column.notes = report.tokens_per_layer[0], report.notes
        column.flops, column.kv, column.selection = (
            report.flops_ratio, report.kv_bytes_ratio, report.selection_seconds,
        )  # fmt: skip
        column.views = plane_views(report, self.it.picture.size, self.answerer.processor)

    def time(self, column: Column, at: int) -> None:
        self.channel.settle()
        answer = self.answerer.answer(self.batch, column.method, max_new_tokens=1, timed=True)[0]
        column.seconds.append(answer.first_token_seconds or 0.0)

    def score(self, column: Column, rope: bool) -> None:
        if column.why_no_maps:
            return
        try:
            schedule = None if column.method is None else column.method.schedule()
            maps = score_maps(self.answerer, self.prompt, schedule, self.it.depth, rope=rope)
        except PruningError as error:
            column.why_no_maps = str(error)
        else:
            column.maps[rope] = maps

    def look(self, column: Column, at: int) -> None:
        assert column.method is not None, "only columns of methods are looked at"
        found = diagnose(
            column.method, model=self.answerer.model, processor=self.answerer.processor, images=[self.it.picture],
            prompt=self.it.question, limit=1,
        )  # fmt: skip
        column.findings = grouped([one for one in found.findings if one.kind not in CHANCE])
        self.channel.emit(Changed(at, whole=True))


def read_box(boxes: BoxReader, answer: str, picture: Image.Image) -> Box | None:
    """Return the box that an answer names, in pixels; None where the family has no box format or there is no box."""
    if boxes.format is None or not boxes.counts(picture.size):
        return None
    return boxes.read(answer, picture.size)


def _column(spec: str) -> Column:
    try:
        method = get(spec)
    except PruningError as error:
        return Column(spec, error=str(error))
    return Column(str(method), method)


@contextmanager
def _into(column: Column) -> Iterator[None]:
    """Say in the column what goes wrong."""
    try:
        yield
    except PruningError as error:
        column.error = " ".join(str(error).split())
