"""Real processor classes of families, made offline: small pictures, and a tokenizer whose special tokens are those of
the family cases' models."""

from families.processors import own_shape, square, tiled

PROCESSORS = square.PROCESSORS | tiled.PROCESSORS | own_shape.PROCESSORS
