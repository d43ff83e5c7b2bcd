"""Converts a run: cheap checks first, then the tensors, then the files, which are written whole or not at all."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from feathervlm.core.errors import PruningError
from feathervlm.integrations.prismatic import model, names, processor, reading
from feathervlm.integrations.prismatic.registry import RunFacts, parse_config
from feathervlm.utils.files import draft_of, unwritable
from feathervlm.utils.outputs import check_folder
from feathervlm.utils.quiet import quiet

Say = Callable[[str], None]

SHARD = "5GB"

NOTES = {
    "resize-naive": (),
    "resize-crop": ("The crop's centre is rounded down, the original's to the nearest pixel: they can differ by one.",),
    "letterbox": (
        "Pictures are padded to an exact square; the original omits one row or column where the difference of the "
        "sides is odd.",
    ),
}
"""Where transformers' image processor can differ from the original's, by resize strategy."""


@dataclass(frozen=True)
class PrismaticFiles:
    """The files that a conversion reads.

    Attributes:
        run: Directory of a Prismatic run, with config.json and checkpoints/latest-checkpoint.pt.
        tokenizer: Directory with the language model's tokenizer.json, which a run does not include.
        vision: File or directory with the weights of the vision encoder, unless the checkpoint includes them.
    """

    run: Path
    tokenizer: Path | None = None
    vision: Path | None = None


@dataclass(frozen=True)
class ConvertedModel:
    """The result of a conversion.

    Attributes:
        facts: The model that the run's config.json describes.
        out: Directory that was written.
        files: Names of the files in it.
        dtype: Type of the weights.
        tensors: Number of converted tensors.
        unused: Names of tensors of the vision weights that LLaVA does not use.
        image_token: Token id of the image placeholder.
    """

    facts: RunFacts
    out: Path
    files: tuple[str, ...]
    dtype: str
    tensors: int
    unused: tuple[str, ...]
    image_token: int

    @property
    def notes(self) -> tuple[str, ...]:
        """Where results can differ from the original model's."""
        return NOTES[self.facts.resize]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, ready for JSON."""
        return {
            "model": self.facts.model,
            "vision": self.facts.vision_id,
            "llm": self.facts.llm_id,
            "image_resize_strategy": self.facts.resize,
            "image_tokens": self.facts.vision.patches,
            "image_token_id": self.image_token,
            "dtype": self.dtype,
            "tensors": self.tensors,
            "unused": list(self.unused),
            "out": str(self.out),
            "files": list(self.files),
            "notes": list(self.notes),
        }


def convert(source: PrismaticFiles, out: Path, *, force: bool = False, say: Say = lambda now: None) -> ConvertedModel:
    """Write a Prismatic run as a LLaVA directory, which `from_pretrained` loads without a network.

    Args:
        source: Files to read.
        out: Directory to write; it appears when it is complete.
        force: Whether to replace the directory if it exists.
        say: Called with a description before every step.

    Raises:
        PruningError: If tensors are unknown or missing, LLaVA cannot represent the model, or the weights or the
            tokenizer belong to another model.
    """
    facts = parse_config(reading.read_config(source.run), str(source.run / "config.json"))
    _check_out(source, out, force)
    if source.tokenizer is None:
        raise PruningError(
            f"A run includes no tokenizer; fetch the tokenizer.json of {facts.llm.fetch} and give its directory with "
            "--tokenizer."
        )
    tokenizer = processor.read_tokenizer(source.tokenizer, facts.llm)
    with quiet():
        say("checking the tokenizer")
        built = processor.build_processor(facts, tokenizer)
        say("checking the tensors")
        checkpoint = reading.read_checkpoint(source.run)
        encoder = _encoder(source, checkpoint, facts)
        parts = model.parts(checkpoint, encoder.tensors, facts)
        rows = parts[names.LLM].tensors["llm.model.embed_tokens.weight"].shape[0]
        processor.check_vocabulary(tokenizer, rows, facts.llm)
        image_token = built.image_token_id
        llava = model.assemble(parts, facts, image_token)
        say(f"writing {out}")
        files = _write(llava, built, out)
    return ConvertedModel(
        facts,
        out,
        files,
        str(llava.dtype).removeprefix("torch."),
        sum(len(part.tensors) for part in parts.values()),
        encoder.unused,
        image_token,
    )


def _encoder(source: PrismaticFiles, checkpoint: dict[str, reading.Tensors], facts: RunFacts) -> reading.EncoderWeights:
    own = checkpoint.get(names.VISION)
    if own is not None and source.vision is not None:
        raise PruningError("The checkpoint includes the vision encoder that it was trained with; leave --vision out.")
    if own is not None:
        return reading.encoder_in_checkpoint(own)
    if source.vision is None:
        raise PruningError(
            "The checkpoint includes no vision encoder, because the run did not train it; fetch "
            f"{' or '.join(facts.vision.fetch)} and give its directory or file with --vision."
        )
    return reading.read_encoder(source.vision)


def _check_out(source: PrismaticFiles, out: Path, force: bool) -> None:
    if os.path.isfile(out):
        raise PruningError(f"{out} is a file; give a directory to write to.")
    check_folder(out, "OUT")
    if not out.parent.is_dir():
        raise PruningError(f"{out} cannot be written: there is no directory {out.parent}; make it first.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise PruningError(f"{out} is not empty; give another directory, or --force to replace it.")
    for path in (source.run, source.tokenizer, source.vision):
        if path is not None and path.resolve().is_relative_to(out.resolve()):
            raise PruningError(f"{out} contains {path}, which the conversion reads; give another directory.")


def _write(llava: LlavaForConditionalGeneration, built: LlavaProcessor, out: Path) -> tuple[str, ...]:
    """Fill a directory next to `out`, then move it there."""
    target = out.resolve()
    draft, old = draft_of(target), draft_of(target)
    try:
        draft.mkdir()
        # With the names of the model's modules, not those that transformers 4 wrote.
        llava.save_pretrained(draft, max_shard_size=SHARD, save_original_format=False)
        built.save_pretrained(draft)
        files = tuple(sorted(path.name for path in draft.iterdir()))
        if target.is_dir():
            target.rename(old)
        draft.rename(target)
    except (OSError, SafetensorError) as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if old.is_dir() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    return files
