"""Models that take pictures and text and yet cannot be pruned, each with the reason."""

SHARES = "layers can reuse the keys and values of earlier ones, which pruning breaks"
CROSS = "pictures enter by cross-attention and take no place in the sequence"
QUERIES = "learned queries stand for each picture; its tokens have no place in it"
WORDS = "pictures are words of the vocabulary, in a code whose geometry the prompt does not tell"
ENCODER = "it is an encoder-decoder, and pictures enter through the encoder"
INDEXER = "a sparse indexer keeps a second cache of keys"
LATENT = "latent attention has no keys of its own to score with"
SLICES = "slices of a picture may each have a shape of their own; not written yet"
THINKER = "speech is made around the part that looks; prune model.thinker, which works"

REFUSED: dict[str, str] = {
    "gemma3n": SHARES,
    "gemma4": SHARES,
    "gemma4_unified": SHARES,
    "mllama": CROSS,
    "idefics": CROSS,
    "blip": CROSS,
    "evolla": CROSS,
    "blip-2": QUERIES,
    "instructblip": QUERIES,
    "instructblipvideo": QUERIES,
    "idefics2": QUERIES,
    "aria": QUERIES,
    "kosmos-2": QUERIES,
    "kosmos-2.5": QUERIES,
    "deepseek_ocr2": QUERIES,
    "chameleon": WORDS,
    "emu3": WORDS,
    "florence2": ENCODER,
    "pix2struct": ENCODER,
    "pp_formulanet": ENCODER,
    "t5gemma2": ENCODER,
    "udop": ENCODER,
    "vision-encoder-decoder": ENCODER,
    "dots3_note": INDEXER,
    "glm5_next": INDEXER,
    "minimax_m3_vl": INDEXER,
    "mistral_large4": INDEXER,
    "qwen4_exp": INDEXER,
    "kimi_k25": LATENT,
    "mistral4": LATENT,
    "minicpmv4_6": SLICES,
    "minicpmv4_7": SLICES,
    "minicpm_ocr": SLICES,
    "step3p7": SLICES,
    "qwen2_5_omni": THINKER,
    "qwen3_omni_moe": THINKER,
    "git": "states of the picture are put in front of the text inside the model; there are no placeholders",
    "fuyu": "its prompts point to patches of pixels by number; no encoder tells their grid",
    "unlimited_ocr": "it brings a cache of its own, which keeps the prompt apart from a sliding window",
    "inkling_mm_model": "attention layers also carry convolution states and take a mask of their own for them",
    "inkling2": "layers also look at states of earlier blocks, which would have to be pruned along",
    "nemotron_h_omni": "layers are mixers of three kinds under names that the engine does not read",
    "phi4_multimodal": "pictures are encoded inside its embedding, out of sight",
    "diffusion_gemma": "it writes text by diffusion, not token after token",
    "muse_glimmer": "which layers rotate is told by a theta per layer, which is not read yet",
    "muse_spark": "which layers rotate is told by a theta per layer, which is not read yet",
}
"""`config.model_type` and why not."""
