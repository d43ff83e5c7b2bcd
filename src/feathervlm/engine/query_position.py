"""The position of each prompt that asks for tokens, and a check of training labels."""

import torch
from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.engine.call import ModelCall


def query_position(call: ModelCall, layout: VisualLayout, attended: Tensor | None) -> Tensor:
    """Return the position that asks for tokens, the last of each prompt: long (batch,).

    Speculative decoding appends candidates to the prompt and requests their logits, so the prompt ends where these
    logits begin. In training the prompt ends before the first label. Either counts only if the query then still follows
    the images; otherwise the last token of the input asks.
    """
    batch, sequence = call.shape
    device = layout.mask.device
    if layout.query is not None:
        return layout.query.to(device)
    index = torch.arange(sequence, device=device)
    last = torch.full((batch,), sequence - 1, device=device)
    if attended is not None:
        last = (attended * index).argmax(1)
    images_end = (layout.mask * (index + 1)).amax(1)
    if isinstance(call.logits_to_keep, int) and call.logits_to_keep > 1:
        before = last - (call.logits_to_keep - 1)
        last = torch.where(before >= images_end, before, last)
    if call.labels is not None:
        labelled = call.labels.to(device) != -100
        first = torch.where(labelled.any(1), labelled.to(torch.uint8).argmax(1), 0)
        last = torch.where(first > images_end, first - 1, last)
    return last


def check_labels(call: ModelCall, layout: VisualLayout) -> None:
    """Check that no label is predicted at a visual token, whose state may be stale once it is dropped.

    Raises:
        Unprunable: If one is.
    """
    if call.labels is None:
        return
    asked = layout.mask[:, :-1] & (call.labels.to(layout.mask.device)[:, 1:] != -100)
    if asked.any():
        sample = int(asked.any(1).nonzero()[0])
        raise Unprunable(
            f"Sample {sample} has a label right after a visual token, predicted from a token that may be dropped; "
            "set the labels of visual tokens and of the token after each image to -100."
        )
