"""The shapes of a decoder's weights as its config gives them.

The parameters of a loaded model do not tell: quantization packs them, adapters add some, and sharding and offloading
leave only parts or nothing of them.
"""

import copy
import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

logger = logging.getLogger(__name__)

_blueprints: "WeakKeyDictionary[nn.Module, list[nn.Module] | None]" = WeakKeyDictionary()


def blueprint(decoder: Any) -> list[nn.Module] | None:
    """Return the layers of a decoder made anew, with parameters that have the config's shapes and no storage.

    Args:
        decoder: A decoder, which has a `config` and a list `layers`.

    Returns:
        The layers; None if the class of the decoder is not made from a config alone.
    """
    if decoder not in _blueprints:
        _blueprints[decoder] = _make(decoder)
    return _blueprints[decoder]


def _make(decoder: Any) -> list[nn.Module] | None:
    config = copy.deepcopy(decoder.config)
    config._attn_implementation = "eager"  # others may have to be installed or loaded
    try:
        with torch.device("meta"):
            return list(type(decoder)(config).layers)
    except Exception as error:  # a class from outside transformers may raise anything
        logger.info("%s cannot be made from its config: %r", type(decoder).__name__, error)
        return None


def active_weights(layer: nn.Module, experts_per_token: int | None) -> int:
    """Return the number of matrix weights that each token is multiplied with.

    Args:
        layer: A decoder layer.
        experts_per_token: Number of experts of a mixture that a token is routed to; None for all.
    """
    count = 0
    for name, weight in layer.named_parameters():
        if weight.dim() < 2 or "norm" in name:
            continue
        experts = weight.shape[0] if weight.dim() == 3 else 0
        chosen = experts_per_token or experts
        count += weight.numel() * min(chosen, experts) // experts if experts else weight.numel()
    return count
