"""The models around a base model: what they were given beside it, and what they make of its hidden states.

A full model has a head, and wrappers such as PEFT's may be around it. Some merge the features of images into the
embeddings by themselves, so that the base model sees neither token ids nor images.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.engine.call import PIXELS, ModelCall
from feathervlm.engine.forward_state import ThreadState
from feathervlm.engine.outputs import zero_embeddings
from feathervlm.engine.vision.recorder import EncoderRecorder


class FullModel:
    """Hooks on the models around a base model; they are registered when the object is made.

    Args:
        models: The full model and its wrappers; the base model may be among them.
        base: The base model.
        thread: What the current thread tells the hooks.
        recorder: Recorder of the vision encoder.
        ignores: Function that returns whether a call is none of the hooks' business.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        base: nn.Module,
        thread: ThreadState,
        recorder: EncoderRecorder,
        ignores: Callable[[], bool],
    ) -> None:
        self.thread, self.recorder, self.ignores = thread, recorder, ignores
        self._names = list(inspect.signature(models[0].forward).parameters)
        encoders = [getattr(base, f"get_{modality}_features", None) for modality in PIXELS]
        self._image_names = {
            name for encoder in encoders if encoder is not None for name in inspect.signature(encoder).parameters
        }
        self._encodes = not hasattr(type(models[0]), "get_image_features")  # such a model may run the encoder itself
        self._handles: list[RemovableHandle] = []
        # PEFT may call `forward` of the model itself, so that only a hook on the wrapper sees the arguments.
        for model in models:
            if model is not base:
                self._handles += [
                    model.register_forward_pre_hook(self._before, with_kwargs=True),
                    model.register_forward_hook(self._after),
                ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def complete(self, call: ModelCall) -> None:
        """Add to a call of the base model the images that the full model has merged into its embeddings."""
        call.outside = self._merged(call.arguments)
        recorded = self.recorder.end_outside(call.outside)
        if recorded is not None:
            encoding, call.encoded[recorded[0].modality] = recorded
            call.encodings.append(encoding)

    def _merged(self, arguments: dict[str, Any]) -> dict[str, Any]:
        outer, embeds = self.thread.outer_arguments or {}, arguments.get("inputs_embeds")
        ids = outer.get("input_ids")
        if arguments.get("input_ids") is not None or ids is None or embeds is None or ids.shape != embeds.shape[:2]:
            return {}
        names = self._image_names | {"input_ids"}
        return {name: value for name, value in outer.items() if name in names and value is not None}

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.ignores():
            return
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
        self.thread.outer_arguments, self.thread.head_arguments = arguments, head_arguments(arguments)
        if self._encodes and any(arguments.get(name) is not None for name in PIXELS.values()):
            self.recorder.begin_outside()

    def _after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.ignores() or self.thread.dropped is None:
            return None
        return zero_embeddings(output, self.thread.dropped)

    def end(self) -> None:
        """End a call of one of the models, also one that has not reached the base model."""
        self.recorder.end_outside({})


def head_arguments(arguments: dict[str, Any]) -> tuple[Any, Tensor | None]:
    """Return `logits_to_keep` and `labels` of a call of the full model; labels that were shifted beforehand, too."""
    labels, shifted = arguments.get("labels"), arguments.get("shift_labels")
    if labels is None and isinstance(shifted, Tensor):
        labels = torch.nn.functional.pad(shifted[:, :-1], (1, 0), value=-100)
    return arguments.get("logits_to_keep", 0), labels
