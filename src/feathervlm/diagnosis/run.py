"""What a method does to your pictures, without labels: where the kept tokens lie, and whether that looks right.

Every picture is asked about once and pruned; only which tokens stay is looked at, never the answer. Knows models and
pictures; what the numbers are is the business of `spread`, what they mean that of `alarms`, how they look of `page`.
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
from feathervlm.diagnosis.findings import Finding, grouped, judge
from feathervlm.diagnosis.images import gallery
from feathervlm.diagnosis.observe import Patient
from feathervlm.diagnosis.summary import Number, Pictures, Seen, Spread
from feathervlm.embedded.assets import SHIPPED
from feathervlm.embedded.vocabulary import check_words
from feathervlm.engine.decoder import DecoderView
from feathervlm.evaluation.samples import pack
from feathervlm.inference import loading
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import LoadedModel
from feathervlm.inference.model_spec import ModelSpec, is_embedded
from feathervlm.methods import Method, get
from feathervlm.utils import files
from feathervlm.utils.progress import Say
from feathervlm.utils.provenance import versions
from feathervlm.utils.quiet import quiet

SHOWN = 6
"""Pictures that are drawn."""
QUESTION, EMBEDDED_QUESTION = "Describe the image.", "what is the background ?"


@dataclass(frozen=True, eq=False)
class Request:
    """What to diagnose.

    Args:
        method: a spec, a method or a schedule.
        model: "embedded" for the one that ships, a directory, a hub id, or a loaded model.
        processor: of a loaded model.
        images: a directory, or pictures; None draws scenes for the embedded model.
        prompt: asked about every picture; None takes one that the model understands.
        limit: pictures at most.
        seed: of the scenes, the random tokens and the intervals.
        device: "auto", "cpu", "cuda", ...; a loaded model stays where it is.
        dtype: "auto", "float32", ...; a loaded model stays as it is.
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

    @property
    def command(self) -> str | None:
        """The command line that asks the same; None if there is none, as for a loaded model."""
        if not isinstance(self.model, str) or isinstance(self.method, Schedule):
            return None
        if not isinstance(self.images, Path | str | None):
            return None
        given = {"images": self.images, "prompt": self.prompt, "limit": self.limit, "seed": self.seed}
        options = {"model": self.model, "method": self.method, **given, "device": self.device, "dtype": self.dtype}
        parts = [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]
        return shlex.join(["feathervlm", "diagnose", *parts])


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found.

    Attributes:
        about: model, method, prompt, pictures, versions: plain values.
        findings: in words, the worst first.
        stages: the numbers of every stage.
        seen: picture by picture.
        average_tokens: visual tokens per layer.
        flops_ratio: of the prefill, over the unpruned one.
        notes: of the runs' reports.
    """

    about: dict[str, Any]
    findings: list[Finding]
    stages: list[Spread]
    seen: list[Seen]
    average_tokens: Number
    flops_ratio: Number
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: no NaN, masks as `kept.unpack` takes them."""
        pictures = [
            {
                "name": one.name,
                "grid": list(one.masks[0].shape) if one.masks else None,
                "tokens": one.tokens,
                "kept": [pack(mask) for mask in one.masks],
            }
            for one in self.seen
        ]
        return {
            "about": self.about,
            "findings": [finding.to_dict() for finding in self.findings],
            "average_tokens": self.average_tokens.to_dict(),
            "flops_ratio": self.flops_ratio.to_dict(),
            "stages": [stage.to_dict() for stage in self.stages],
            "notes": self.notes,
            "pictures": pictures,
        }

    def write(self, out: Path | str) -> list[Path]:
        """Write `diagnosis.html` and `diagnosis.json` to a directory, which is made.

        Raises:
            PruningError: if they cannot be written.
        """
        from feathervlm.diagnosis.page import render

        folder = Path(out)
        files.make_directory(folder, "out")
        page, numbers = folder / "diagnosis.html", folder / "diagnosis.json"
        text = render(self)

        def write(draft: Path) -> None:
            draft.write_text(text, encoding="utf-8")

        files.write_whole(page, write)
        files.write_json(numbers, self.to_dict())
        return [page, numbers]

    def __str__(self) -> str:
        lines = [f"{self.about['method']} on {self.about['model']}, {len(self.seen)} pictures"]
        lines += [f"{self.average_tokens} visual tokens per layer, {self.flops_ratio} of the prefill FLOPs"]
        for level, texts, remedy in grouped(self.findings):
            lines += [f"{level}: {text}" for text in texts] + ([f"    {remedy}"] if remedy else [])
        return "\n".join(lines)


def diagnose(
    request: Request | str | Method | Schedule = "feather", say: Say = lambda now: None, **options: Any
) -> Diagnosis:
    """See what a method keeps of some pictures.

    >>> diagnose("fastv:layer=2", images=pictures, model=model, processor=processor)  # doctest: +SKIP

    Args:
        request: what to diagnose; or the method, with the other fields of `Request` as options.
        say: is told what happens now.
        options: see `Request`.

    Raises:
        PruningError: on whatever the user can put right.
    """
    if not isinstance(request, Request):
        request = Request(request, **options)
    elif options:
        raise PruningError(f"The request says it all; put {', '.join(options)} into it.")
    method = get(request.method) if isinstance(request.method, str) else request.method
    schedule = method.schedule() if isinstance(method, Method) else method
    sources = list(gallery(request.images, request.limit, request.seed, drawn=request.model == SHIPPED))
    hashes = set()
    for number, (name, open_picture) in enumerate(sources):  # a broken file is found before gigabytes are read
        say(f"looking at {name} ({number + 1} of {len(sources)})")
        picture = open_picture()
        hashes.add(hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest())
    with quiet():
        loaded = _load(request, method, say)
        patient = Patient(Answerer(loaded), method, schedule, _prompt(request, loaded.processor))
        begun = time.perf_counter()
        seen, notes = [], dict[str, None]()
        for number, (name, open_picture) in enumerate(sources):
            left = (time.perf_counter() - begun) / number * (len(sources) - number) if number else 0
            say(f"{name} ({number + 1} of {len(sources)})" + (f", {left:.0f} s left" if number else ""))
            one, said = patient.see(name, open_picture(), draw=number < SHOWN)
            seen.append(one)
            notes |= dict.fromkeys(said)
    say("adding up")
    pictures = Pictures(seen, patient.layers, patient.why_no_prior, request.seed)
    spreads = pictures.spreads()
    return Diagnosis(
        about=_about(request, patient, [one.name for one in seen]),
        findings=judge(pictures, spreads, schedule, len(hashes)),
        stages=spreads,
        seen=seen,
        average_tokens=pictures.number("tokens per layer", [one.average_tokens for one in seen]),
        flops_ratio=pictures.number("prefill FLOPs", [one.flops_ratio for one in seen]),
        notes=list(notes),
    )


def _load(request: Request, method: Method | Schedule, say: Say) -> LoadedModel:
    """The model and its processor; what does not fit is said before the weights are read."""
    if not isinstance(request.model, str):
        if request.processor is None:
            raise PruningError("A loaded model needs its processor, too; give processor=...")
        prune(request.model, method).remove()
        return LoadedModel.of(request.model, request.processor)
    say(f"loading {request.model}")
    checked = loading.check(ModelSpec(request.model, request.device, request.dtype), [method])
    _prompt(request, checked.processor)
    return checked.load()


def _prompt(request: Request, processor: Any) -> str:
    if is_embedded(processor):
        prompt = request.prompt or EMBEDDED_QUESTION
        check_words(processor, [prompt])
        return prompt
    if request.prompt or getattr(processor, "chat_template", None):
        return request.prompt or QUESTION
    return f"{getattr(processor, 'image_token', None) or '<image>'}\n{QUESTION}"


def _about(request: Request, patient: Patient, names: list[str]) -> dict[str, Any]:
    model, loaded = patient.model, not isinstance(request.model, str)
    return {
        "command": request.command,
        "model": str(model.name_or_path or type(model).__name__) if loaded else request.model,
        "model_type": str(model.config.model_type),
        "method": str(patient.method) if isinstance(patient.method, Method) else "schedule",
        "layers": list(patient.layers),
        "depth": len(DecoderView(model).layers),
        "prompt": patient.prompt,
        "images": names,
        "directory": str(request.images) if isinstance(request.images, Path | str) else None,
        "seed": request.seed,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": versions("numpy"),
    }
