"""PaliGemma: one square grid before the text, and attention that sees the whole prompt in both directions."""

from feathervlm.families.llava import Llava


class PaliGemma(Llava):
    """`PaliGemmaForConditionalGeneration`."""

    title = "PaliGemma"
    model_types = ("paligemma",)
