"""What a method does to your pictures, without labels: where the kept tokens lie, and whether that looks right.

Every picture is asked about once and pruned; only which tokens stay is observed, not the answer. `summary` computes the
numbers, `findings` interprets them, `page` shows them.
"""

import hashlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from feathervlm.api import prune
from feathervlm.core.errors import PruningError
from feathervlm.core.schedule import Schedule
from feathervlm.diagnosis.findings import judge
from feathervlm.diagnosis.images import ImageSource, image_sources, passed_over
from feathervlm.diagnosis.observe import PictureObserver
from feathervlm.diagnosis.result import Diagnosis
from feathervlm.diagnosis.summary import Summarizer
from feathervlm.embedded.assets import SHIPPED
from feathervlm.engine.decoder import DecoderView
from feathervlm.inference import loading
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import LoadedModel
from feathervlm.inference.model_spec import ModelSpec, is_embedded
from feathervlm.inference.prompts import check_prompt, has_template, image_marker
from feathervlm.methods import Method, get
from feathervlm.utils.pictures import BACKGROUND
from feathervlm.utils.progress import Say
from feathervlm.utils.provenance import versions
from feathervlm.utils.quiet import quiet

DRAWN = 6
"""Number of pictures that the page shows."""
QUESTION, EMBEDDED_QUESTION = "Describe the image.", "what is the background ?"


@dataclass(frozen=True, eq=False)
class DiagnosisRequest:
    """What to diagnose.

    Args:
        method: Spec, method or schedule.
        model: "embedded" for the shipped model, a directory, a hub id, or a loaded model.
        processor: Processor of a loaded model.
        images: Directory or pictures; None for drawn scenes, which the embedded model has.
        prompt: Text that is asked about every picture; None for one that the model understands.
        limit: Largest number of pictures.
        seed: Seed of the scenes, the random tokens and the intervals.
        device: "auto", "cpu", "cuda", ...; a loaded model stays where it is.
        dtype: "auto", "float32", ...; a loaded model stays as it is.
        attention: Attention implementation as transformers names it; a loaded model keeps its own.
        background: Colour under transparent parts of pictures.
    """

    method: str | Method | Schedule = "feather"
    model: Any = SHIPPED
    processor: Any = None
    images: Path | str | Sequence[Image.Image] | None = None
    prompt: str | None = None
    limit: int = 32
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    background: str = BACKGROUND

    @property
    def command(self) -> str | None:
        """The command line that asks the same; None if there is none, as for a loaded model."""
        if not isinstance(self.model, str) or isinstance(self.method, Schedule):
            return None
        if not isinstance(self.images, Path | str | None):
            return None
        inputs = {"images": self.images, "prompt": self.prompt, "limit": self.limit, "seed": self.seed}
        options = {"model": self.model, "method": self.method, **inputs, "device": self.device, "dtype": self.dtype}
        if self.attention != "sdpa":
            options["attn-implementation"] = self.attention
        if self.background != BACKGROUND:
            options["background"] = self.background
        parts = [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]
        return shlex.join(["feathervlm", "diagnose", *parts])


def diagnose(
    request: DiagnosisRequest | str | Method | Schedule = "feather", say: Say = lambda now: None, **options: Any
) -> Diagnosis:
    """Diagnose what a method keeps of pictures.

    >>> diagnose("fastv:layer=2", images=pictures, model=model, processor=processor)  # doctest: +SKIP

    Args:
        request: What to diagnose; or the method, with the other fields of `DiagnosisRequest` as options.
        say: Callback, called with what happens now.
        options: Fields of `DiagnosisRequest`.

    Raises:
        PruningError: The request cannot be met; the message says what to change.
    """
    if not isinstance(request, DiagnosisRequest):
        request = DiagnosisRequest(request, **options)
    elif options:
        raise PruningError(f"A request holds all options; put {', '.join(options)} into it.")
    return _diagnose([request], say)[0]


def diagnose_methods(
    methods: Sequence[str | Method | Schedule], say: Say = lambda now: None, **options: Any
) -> list[Diagnosis]:
    """Diagnose what several methods keep of the same pictures; the model is loaded once.

    Args:
        methods: Specs, methods or schedules.
        say: Callback, called with what happens now.
        options: Fields of `DiagnosisRequest`.

    Raises:
        PruningError: As `diagnose`.
    """
    return _diagnose([DiagnosisRequest(method, **options) for method in methods], say)


def _diagnose(requests: Sequence[DiagnosisRequest], say: Say) -> list[Diagnosis]:
    """Diagnose requests that differ in their method only."""
    first = requests[0]
    methods = [get(one.method) if isinstance(one.method, str) else one.method for one in requests]
    scenes = isinstance(first.model, str) and first.model == SHIPPED
    sources = list(image_sources(first.images, first.limit, first.seed, scenes=scenes, background=first.background))
    hashes = set()
    for number, (name, open_picture) in enumerate(sources):  # a broken file is found before gigabytes are read
        say(f"checking {name} ({number + 1} of {len(sources)})")
        picture = open_picture()
        hashes.add(hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest())
    with quiet():
        loaded = _load(first, methods, say)
        prompt = _prompt(first, loaded.processor)
        return [
            _observe(request, PictureObserver(Answerer(loaded), method, prompt), sources, len(hashes), say)
            for request, method in zip(requests, methods, strict=True)
        ]


def _observe(
    request: DiagnosisRequest, observer: PictureObserver, sources: Sequence[ImageSource], distinct: int, say: Say
) -> Diagnosis:
    """Observe all pictures under one method and compute the numbers."""
    start = time.perf_counter()
    observations, notes = [], dict[str, None]()
    for number, (name, open_picture) in enumerate(sources):
        left = (time.perf_counter() - start) / number * (len(sources) - number) if number else 0
        say(f"{name} ({number + 1} of {len(sources)})" + (f", {left:.0f} s left" if number else ""))
        observation, more = observer.observe(name, open_picture(), draw=number < DRAWN)
        observations.append(observation)
        notes |= dict.fromkeys(more)
    say("computing the numbers")
    summarizer = Summarizer(observations, observer.layers, observer.why_no_prior, request.seed)
    stages = summarizer.stages()
    return Diagnosis(
        about=_about(request, observer, [one.name for one in observations]),
        findings=judge(observations, stages, observer.schedule, distinct),
        stages=stages,
        observations=observations,
        average_tokens=summarizer.statistic("tokens per layer", [one.average_tokens for one in observations]),
        flops_ratio=summarizer.statistic("prefill FLOPs", [one.flops_ratio for one in observations]),
        notes=[*notes, *passed_over(request.images)],
    )


def _load(request: DiagnosisRequest, methods: Sequence[Method | Schedule], say: Say) -> LoadedModel:
    """Return the model; refuse what does not fit before weights are read."""
    if not isinstance(request.model, str):
        if request.processor is None:
            raise PruningError("A loaded model needs its processor, too; give processor=...")
        for method in methods:
            prune(request.model, method).remove()
        return LoadedModel.of(request.model, request.processor)
    say(f"loading {request.model}")
    spec = ModelSpec(request.model, request.device, request.dtype, request.attention)
    checked = loading.check(spec, methods)
    _prompt(request, checked.processor)
    return checked.load()


def _prompt(request: DiagnosisRequest, processor: Any) -> str:
    """Return the prompt, by default one that the model understands."""
    default = QUESTION if has_template(processor) else f"{image_marker(processor)}\n{QUESTION}"
    prompt = request.prompt or (EMBEDDED_QUESTION if is_embedded(processor) else default)
    check_prompt(processor, prompt)
    return prompt


def _about(request: DiagnosisRequest, observer: PictureObserver, names: list[str]) -> dict[str, Any]:
    model, loaded = observer.model, not isinstance(request.model, str)
    return {
        "command": request.command,
        "model": str(model.name_or_path or type(model).__name__) if loaded else request.model,
        "model_type": str(model.config.model_type),
        "method": str(observer.method) if isinstance(observer.method, Method) else "schedule",
        "layers": list(observer.layers),
        "depth": len(DecoderView(model).layers),
        "prompt": observer.prompt,
        "images": names,
        "directory": str(request.images) if isinstance(request.images, Path | str) else None,
        "seed": request.seed,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": versions("numpy"),
    }
