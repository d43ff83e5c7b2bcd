"""CDPruner: the tokens that span the most, weighted by how much they are like the question."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from feathervlm.core import DPP, Keep, Layer, Schedule, Stage, TextPart, TextSimilarity, check_choice
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class CDPruner(Method):
    """Keep the tokens that are most diverse for the question: a determinantal point process with relevance.

    The kernel is r_i cos_ij r_j of what the projector gives out, and the set of the largest determinant is found
    greedily. Relevance r, 0 to 1 within each image, is the cosine to the mean embedding of the text. No attention is
    read.

    Paper and code: the authors' relevance is that of CLIP's text tower to CLIP's patches, with its sign turned, since
    CLIP's patches are least like what they show. Most models have no such tower; as OpenVINO does, the language
    model's own embeddings of the text, the template's included, are compared with the projected features instead, and
    the sign is not turned. OpenVINO's other changes (a sum in place of the product, two halves of the tokens) are not
    made. The authors bring relevance to 0 to 1 over a whole batch, here it is each image. Once the determinant gains
    nothing more, the most relevant tokens fill up.

    Args:
        layer: tokens leave before this layer.
        keep: fraction or number of visual tokens kept.
        text: `all` of the prompt, or what is `behind` the last image.
        positions: `preserve`, `renumber` or `stretch`.
    """

    name: ClassVar[str] = "cdpruner"
    paper: ClassVar[str] = "2506.10967 (NeurIPS 2025), Theia-4869/CDPruner"

    layer: Layer = 0
    keep: Keep = 0.25
    text: TextPart = "all"
    positions: Literal["preserve", "renumber", "stretch"] = "preserve"

    def schedule(self) -> Schedule:
        """One stage."""
        check_choice(self.text, get_args(TextPart), "text")
        check_choice(self.positions, ("preserve", "renumber", "stretch"), "positions")
        relevance = TextSimilarity("projected", self.text)
        return Schedule(Stage(self.layer, DPP(self.keep, relevance, "projected"), self.positions))
