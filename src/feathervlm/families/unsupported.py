"""Models that take images and text and that still cannot be pruned, each with the reason."""

SHARED_KEYS = "layers can reuse the keys and values of previous layers, which pruning breaks"
CROSS_ATTENTION = "images enter by cross-attention and take no place in the sequence"
LEARNED_QUERIES = "learned queries represent each image; its own tokens have no place in the sequence"
IMAGE_VOCABULARY = "images are words of the vocabulary, in a code whose geometry the prompt does not give"
ENCODER_DECODER = "it is an encoder-decoder, and images enter through the encoder"
SPARSE_INDEXER = "a sparse indexer keeps a second cache of keys"
LATENT_ATTENTION = "latent attention has no keys of its own to score with"
IMAGE_SLICES = "slices of an image may each have a shape of their own; this is not implemented"
OMNI = "speech is made around the part that sees images; prune model.thinker, which works"
THETA_PER_LAYER = "a theta per layer decides which layers rotate; this is not implemented"

UNSUPPORTED: dict[str, str] = {
    "gemma3n": SHARED_KEYS,
    "gemma4": SHARED_KEYS,
    "gemma4_unified": SHARED_KEYS,
    "mllama": CROSS_ATTENTION,
    "idefics": CROSS_ATTENTION,
    "blip": CROSS_ATTENTION,
    "evolla": CROSS_ATTENTION,
    "blip-2": LEARNED_QUERIES,
    "instructblip": LEARNED_QUERIES,
    "instructblipvideo": LEARNED_QUERIES,
    "idefics2": LEARNED_QUERIES,
    "aria": LEARNED_QUERIES,
    "kosmos-2": LEARNED_QUERIES,
    "kosmos-2.5": LEARNED_QUERIES,
    "deepseek_ocr2": LEARNED_QUERIES,
    "chameleon": IMAGE_VOCABULARY,
    "emu3": IMAGE_VOCABULARY,
    "florence2": ENCODER_DECODER,
    "pix2struct": ENCODER_DECODER,
    "pp_formulanet": ENCODER_DECODER,
    "t5gemma2": ENCODER_DECODER,
    "udop": ENCODER_DECODER,
    "vision-encoder-decoder": ENCODER_DECODER,
    "dots3_note": SPARSE_INDEXER,
    "glm5_next": SPARSE_INDEXER,
    "minimax_m3_vl": SPARSE_INDEXER,
    "mistral_large4": SPARSE_INDEXER,
    "qwen4_exp": SPARSE_INDEXER,
    "kimi_k25": LATENT_ATTENTION,
    "mistral4": LATENT_ATTENTION,
    "minicpmv4_6": IMAGE_SLICES,
    "minicpmv4_7": IMAGE_SLICES,
    "minicpm_ocr": IMAGE_SLICES,
    "step3p7": IMAGE_SLICES,
    "qwen2_5_omni": OMNI,
    "qwen3_omni_moe": OMNI,
    "git": "states of the image are put before the text inside the model; there are no placeholders",
    "fuyu": "its prompts point to patches of pixels by number; no encoder gives their grid",
    "unlimited_ocr": "it has a cache of its own, which keeps the prompt apart from a sliding window",
    "inkling_mm_model": "attention layers also hold convolution states and take a separate mask for them",
    "inkling2": "layers also read states of previous blocks, which would have to be pruned, too",
    "nemotron_h_omni": "layers are mixers of three kinds under names that the engine does not read",
    "phi4_multimodal": "images are encoded inside its embedding, which the engine does not see",
    "diffusion_gemma": "it writes text by diffusion and not token by token",
    "muse_glimmer": THETA_PER_LAYER,
    "muse_spark": THETA_PER_LAYER,
}
"""Each `config.model_type` that cannot be pruned, with the reason."""
