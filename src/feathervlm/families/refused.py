"""Models that take pictures and text and yet cannot be pruned, each with the reason."""

SHARES = "its last layers reuse the keys and values of earlier ones, which pruning breaks"
CROSS = "pictures enter by cross-attention and take no place in the sequence"
QUERIES = "a handful of learned queries stands for each picture; there is nothing to prune"
WORDS = "pictures are words of the vocabulary, in a code whose geometry the prompt does not tell"

REFUSED: dict[str, str] = {
    "gemma3n": SHARES,
    "gemma4": SHARES,
    "mllama": CROSS,
    "idefics": CROSS,
    "blip_2": QUERIES,
    "instructblip": QUERIES,
    "chameleon": WORDS,
    "emu3": WORDS,
    "janus": WORDS,
    "fuyu": "its prompts point to patches of pixels by number; no encoder tells their grid",
}
"""`config.model_type` and why not."""
