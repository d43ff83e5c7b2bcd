"""What criteria may read from a running model: one class for each measurement."""

from feathervlm.core.signals.base import Signal, Signals, TextPart, describe_signals, written_layer
from feathervlm.core.signals.encoder import (
    EncoderAttention,
    EncoderKeys,
    EncoderMeasure,
    EncoderSignal,
    EncoderSource,
    Heads,
    Representatives,
    encoder_layer_index,
)
from feathervlm.core.signals.features import Features, FeatureSource
from feathervlm.core.signals.layers import (
    Attention,
    HeadAttention,
    Keys,
    LayerSignal,
    LayerStates,
    Point,
    RaterAttention,
    RotaryTable,
    ScoreLayer,
    Support,
    Values,
    Wave,
)
from feathervlm.core.signals.text import IsText, Text
from feathervlm.core.signals.vectors import Vectors, check_keys, check_vectors

__all__ = [
    "Attention",
    "EncoderAttention",
    "EncoderKeys",
    "EncoderMeasure",
    "EncoderSignal",
    "EncoderSource",
    "FeatureSource",
    "Features",
    "HeadAttention",
    "Heads",
    "IsText",
    "Keys",
    "LayerSignal",
    "LayerStates",
    "Point",
    "RaterAttention",
    "Representatives",
    "RotaryTable",
    "ScoreLayer",
    "Signal",
    "Signals",
    "Support",
    "Text",
    "TextPart",
    "Values",
    "Vectors",
    "Wave",
    "check_keys",
    "check_vectors",
    "describe_signals",
    "encoder_layer_index",
    "written_layer",
]
