"""What a user writes after `--model_args` and in a task's `generation_kwargs`, as settings that are checked.

Knows words and numbers; knows neither lmms-eval nor a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from feathervlm.core.errors import PruningError
from feathervlm.core.spec import add_parameters
from feathervlm.methods import Method, get

UNPRUNED = "none"
"""The method that prunes nothing."""
MAX_NEW_TOKENS = 128
"""For tasks that set no limit, as in the harness of arXiv 2412.13180."""
_DECODING = ("do_sample", "temperature", "top_p", "top_k", "num_beams")


def read_method(method: str, more: Mapping[str, Any]) -> Method | None:
    """The method, None for `none`.

    lmms-eval cuts `method=feather:keep=0.3,layers=8+16` at its comma into a method and an argument `layers`. Arguments
    that the model does not have are therefore further parameters of the method, in the order in which they come.

    Args:
        method: a spec or the first part of one; quotes around it are dropped.
        more: what was cut off.

    Raises:
        PruningError: on an unknown method or parameter, or a value out of range.

    >>> read_method("feather:keep=0.3", {"layers": "8+16"}) == read_method("feather", {"keep": 0.3, "layers": "8+16"})
    True
    """
    spec = method.strip().strip("\"'").strip()
    if spec == UNPRUNED and more:
        rest = add_parameters("", more)[1:]
        raise PruningError(f"{rest} is no argument of the model, and without a method no parameter of one.")
    return None if spec == UNPRUNED else get(add_parameters(spec, more))


def read_batch_size(value: int | str) -> int:
    """Prompts per forward.

    Raises:
        PruningError: if it is not a positive number.
    """
    if not str(value).isdecimal() or int(value) < 1:
        raise PruningError(f"batch_size={value!r} is not a positive number; `auto` is not supported, give one.")
    return int(value)


@dataclass(frozen=True)
class Generation:
    """How the prompts of a task are to be answered.

    Attributes:
        max_new_tokens: per answer.
        until: the answer ends before the first of these texts.
        choices: if there are any, the answer is the one whose first token is most likely.
        box: if given, the column that describes what is to be located.
        ignored: keys that ask nothing of this model.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    until: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    box: str | None = None
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From a task's `generation_kwargs`.

        Raises:
            PruningError: if they ask for sampling or beams.
        """
        temperature = given.get("temperature")
        sampled = given.get("do_sample", bool(temperature)) and temperature != 0
        if sampled or (given.get("num_beams") or 1) > 1:
            asked = {key: given[key] for key in _DECODING if key in given}
            raise PruningError(
                f"The task asks for sampling or beams ({asked}), and this model answers greedily; add --gen_kwargs "
                "do_sample=False,temperature=0,num_beams=1."
            )
        until = given.get("until") or ()
        known = {"max_new_tokens", "until", "choices", "box", *_DECODING}
        return cls(
            max_new_tokens=int(given.get("max_new_tokens") or MAX_NEW_TOKENS),
            until=(until,) if isinstance(until, str) else tuple(until),
            choices=tuple(given.get("choices") or ()),
            box=given.get("box"),
            ignored=tuple(sorted(set(given) - known)),
        )

    def cut(self, answer: str) -> str:
        """An answer up to where it ends.

        >>> Generation(until=("END",)).cut(" yes END no")
        'yes'
        """
        for stop in self.until:
            answer = answer.partition(stop)[0] if stop else answer
        return answer.strip()
