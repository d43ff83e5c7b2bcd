"""The arguments after `--model_args` and a task's `generation_kwargs`, checked and as settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from feathervlm.core.errors import PruningError
from feathervlm.core.spec import add_parameters
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.methods import Method, get

MAX_NEW_TOKENS = 128
"""Answer length for tasks that set no limit, as in the harness of arXiv 2412.13180."""
_DECODING = ("do_sample", "temperature", "top_p", "top_k", "num_beams")


def read_method(method: str, more: Mapping[str, Any]) -> Method | None:
    """Return the method, or None for `unpruned` and its alias `none`.

    lmms-eval cuts `method=feather:keep=0.3,layers=8+16` at its comma into a method and an argument `layers`. Arguments
    that the model does not have are therefore further parameters of the method, in their order.

    Args:
        method: A spec or the first part of one; quotes around it are dropped.
        more: The arguments that were cut off.

    Raises:
        PruningError: The method or a parameter is unknown, or a value is out of range.

    >>> read_method("feather:keep=0.3", {"layers": "8+16"}) == read_method("feather", {"keep": 0.3, "layers": "8+16"})
    True
    """
    spec = method.strip().strip("\"'").strip()
    unpruned = spec in (UNPRUNED, "none")
    if unpruned and more:
        rest = add_parameters("", more)[1:]
        raise PruningError(f"{rest} is no argument of the model, and without a method no parameter of one.")
    return None if unpruned else get(add_parameters(spec, more))


def read_batch_size(value: int | str) -> int:
    """Return the number of prompts per forward.

    Raises:
        PruningError: The value is not a positive number.
    """
    if not str(value).isdecimal() or int(value) < 1:
        raise PruningError(f"batch_size={value!r} is not a positive number; `auto` is not supported, give one.")
    return int(value)


@dataclass(frozen=True)
class Generation:
    """How the prompts of a task are answered.

    Attributes:
        max_new_tokens: Maximum length of an answer.
        until: Texts before the first of which the answer ends.
        choices: Answers to choose from by their first token; empty if the answer is written freely.
        box: Column that describes the target to locate; None if no box is asked for.
        ignored: Keys that this model does not use.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    until: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    box: str | None = None
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Read the `generation_kwargs` of a task.

        Raises:
            PruningError: They ask for sampling or beams.
        """
        temperature = options.get("temperature")
        sampled = options.get("do_sample", bool(temperature)) and temperature != 0
        if sampled or (options.get("num_beams") or 1) > 1:
            asked = {key: options[key] for key in _DECODING if key in options}
            raise PruningError(
                f"The task asks for sampling or beams ({asked}), and this model answers greedily; add --gen_kwargs "
                "do_sample=False,temperature=0,num_beams=1."
            )
        until = options.get("until") or ()
        known = {"max_new_tokens", "until", "choices", "box", *_DECODING}
        return cls(
            max_new_tokens=int(options.get("max_new_tokens") or MAX_NEW_TOKENS),
            until=(until,) if isinstance(until, str) else tuple(until),
            choices=tuple(options.get("choices") or ()),
            box=options.get("box"),
            ignored=tuple(sorted(set(options) - known)),
        )

    def cut(self, answer: str) -> str:
        """Return an answer up to its end.

        >>> Generation(until=("END",)).cut(" yes END no")
        'yes'
        """
        for stop in self.until:
            answer = answer.partition(stop)[0] if stop else answer
        return answer.strip()
