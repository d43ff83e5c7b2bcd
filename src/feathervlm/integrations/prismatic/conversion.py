"""The conversion from end to end: what can be refused cheaply first, then the tensors, then files, all or none.

Knows nothing of the terminal.
"""

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
from feathervlm.integrations.prismatic.registry import Recipe, recipe
from feathervlm.utils.quiet import quiet

Say = Callable[[str], None]

SHARD = "5GB"

NOTES = {
    "resize-naive": (),
    "resize-crop": ("The crop's centre is rounded down, the original's to the nearest pixel: they can differ by one.",),
    "letterbox": (
        "Pictures are padded to an exact square; the original leaves out one row or column where the difference of "
        "the sides is odd.",
    ),
}
"""Where transformers' image processor can differ from the original's, by resize strategy."""


@dataclass(frozen=True)
class Sources:
    """Where everything comes from.

    Args:
        run: folder of a Prismatic run, with config.json and checkpoints/latest-checkpoint.pt.
        tokenizer: directory with the language model's tokenizer.json; no run brings it.
        vision: weights of the vision encoder, unless the checkpoint holds them.
    """

    run: Path
    tokenizer: Path | None = None
    vision: Path | None = None


@dataclass(frozen=True)
class Converted:
    """What was written, and what was left out."""

    recipe: Recipe
    out: Path
    files: tuple[str, ...]
    dtype: str
    tensors: int
    unused: tuple[str, ...]
    image_token: int

    @property
    def notes(self) -> tuple[str, ...]:
        """Where results can differ from the original's."""
        return NOTES[self.recipe.resize]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "model": self.recipe.model,
            "vision": self.recipe.tower_id,
            "llm": self.recipe.llm_id,
            "image_resize_strategy": self.recipe.resize,
            "image_tokens": self.recipe.tower.patches,
            "image_token_id": self.image_token,
            "dtype": self.dtype,
            "tensors": self.tensors,
            "unused": list(self.unused),
            "out": str(self.out),
            "files": list(self.files),
            "notes": list(self.notes),
        }


def convert(sources: Sources, out: Path, *, force: bool = False, say: Say = lambda now: None) -> Converted:
    """Write a Prismatic run as a LLaVA directory, which `from_pretrained` takes without a network.

    Args:
        sources: where everything comes from.
        out: directory to write; it appears when it is complete.
        force: replace it if it is there already.
        say: is told what happens now.

    Raises:
        PruningError: on whatever the user can put right: unknown or missing tensors, models that LLaVA cannot hold,
            weights or a tokenizer that belong to another model.
    """
    told = recipe(reading.read_config(sources.run), str(sources.run / "config.json"))
    _check_out(sources, out, force)
    if sources.tokenizer is None:
        raise PruningError(
            f"A run holds no tokenizer; fetch the tokenizer.json of {told.llm.fetch} and give its directory with "
            "--tokenizer."
        )
    tokenizer = processor.read_tokenizer(sources.tokenizer, told.llm)
    with quiet():
        say("checking the tokenizer")
        made = processor.processor(told, tokenizer)
        say("looking at the tensors")
        checkpoint = reading.read_checkpoint(sources.run)
        tower = _tower(sources, checkpoint, told)
        found = model.parts(checkpoint, tower.tensors, told)
        rows = found[names.LLM].tensors["llm.model.embed_tokens.weight"].shape[0]
        processor.check_vocabulary(tokenizer, rows, told.llm)
        image_token = made.image_token_id
        llava = model.assemble(found, told, image_token)
        say(f"writing {out}")
        files = _write(llava, made, out)
    return Converted(
        told,
        out,
        files,
        str(llava.dtype).removeprefix("torch."),
        sum(len(part.tensors) for part in found.values()),
        tower.unused,
        image_token,
    )


def _tower(sources: Sources, checkpoint: dict[str, reading.Tensors], told: Recipe) -> reading.TowerWeights:
    own = checkpoint.get(names.TOWER)
    if own is not None and sources.vision is not None:
        raise PruningError("The checkpoint holds the vision encoder that it was trained with; leave --vision out.")
    if own is not None:
        return reading.own_tower(own)
    if sources.vision is None:
        raise PruningError(
            f"The checkpoint holds no vision encoder, for it was not trained; fetch {' or '.join(told.tower.fetch)} "
            f"and give its directory or file with --vision."
        )
    return reading.read_tower(sources.vision)


def _check_out(sources: Sources, out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise PruningError(f"{out} is a file; give a directory to write to.")
    if not out.parent.is_dir():
        raise PruningError(f"{out} cannot be written: there is no directory {out.parent}; make it first.")
    if not os.access(out.parent, os.W_OK):
        raise PruningError(f"{out} cannot be written: {out.parent} is write-protected; choose another place.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise PruningError(f"{out} is not empty; give another directory, or --force to replace it.")
    for path in (sources.run, sources.tokenizer, sources.vision):
        if path is not None and path.resolve().is_relative_to(out.resolve()):
            raise PruningError(f"{out} holds {path}, which is needed; give another directory.")


def _write(llava: LlavaForConditionalGeneration, made: LlavaProcessor, out: Path) -> tuple[str, ...]:
    """Fill a directory beside `out`, then put it in its place."""
    target = out.resolve()
    draft, old = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("draft", "old"))
    try:
        draft.mkdir()
        # The names of the model's modules, rather than those that transformers 4 would have written.
        llava.save_pretrained(draft, max_shard_size=SHARD, save_original_format=False)
        made.save_pretrained(draft)
        files = tuple(sorted(path.name for path in draft.iterdir()))
        if target.is_dir():
            target.rename(old)
        draft.rename(target)
    except (OSError, SafetensorError) as error:
        raise PruningError(f"{out} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if old.is_dir() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    return files
