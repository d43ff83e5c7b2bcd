"""CDPruner: a determinantal point process that weights diversity by relevance to the question."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from feathervlm.core import DPP, Keep, Layer, Schedule, Stage, TextPart, TextSimilarity, check_choice
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class CDPruner(Method):
    """Keep the tokens that are most diverse for the question: a determinantal point process with relevance.

    The kernel is r_i cos_ij r_j of the projected features, and the set with the largest determinant is found greedily.
    Relevance r, scaled to [0, 1] within each image, is the cosine to the mean embedding of the text. It selects before
    the language model and reads no attention.

    Paper and code: the authors take relevance from CLIP's text encoder and CLIP's patches and flip its sign, because
    CLIP's patches are least similar to what they show. Most models have no such encoder; as in OpenVINO, the text
    embeddings of the language model, chat template included, are compared with the projected features, and the sign is
    not flipped. OpenVINO's other changes (a sum instead of the product, two halves of the tokens) are not made. The
    authors scale relevance over a whole batch, here over each image. Once the determinant gains nothing, the most
    relevant tokens fill the budget.

    Args:
        layer: Tokens leave before this layer.
        keep: Fraction or number of visual tokens kept.
        text: `all` of the prompt, or the `question` after the last image.
        positions: `preserve`, `renumber` or `stretch`.
    """

    name: ClassVar[str] = "cdpruner"
    paper: ClassVar[str] = "2506.10967 (NeurIPS 2025), Theia-4869/CDPruner"

    layer: Layer = 0
    keep: Keep = 0.25
    text: TextPart = "all"
    positions: Literal["preserve", "renumber", "stretch"] = "preserve"

    def schedule(self) -> Schedule:
        check_choice(self.text, get_args(TextPart), "text")
        check_choice(self.positions, ("preserve", "renumber", "stretch"), "positions")
        relevance = TextSimilarity("projected", self.text)
        return Schedule(Stage(self.layer, DPP(self.keep, relevance, "projected"), self.positions))
