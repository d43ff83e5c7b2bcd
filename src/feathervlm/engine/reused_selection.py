"""A selection that holds beyond one forward where no cache remembers it."""

from dataclasses import dataclass

from torch import Tensor

from feathervlm.engine.call import ModelCall
from feathervlm.engine.copies import same_tensor, same_tree


@dataclass(eq=False)
class ReusedSelection:
    """The tokens kept of a prompt, for the same prompt with text appended.

    Attributes:
        tokens: `input_ids` or `inputs_embeds` of the prompt.
        source: The tensors that its images came in.
        kept: Tokens kept at each stage, bool (batch, visual).
    """

    tokens: Tensor
    source: tuple[Tensor, ...]
    kept: list[Tensor]

    def covers(self, call: ModelCall, source: tuple[Tensor, ...]) -> bool:
        """Return whether a call brings the same prompt, the same images and more text."""
        known, now = self.tokens, call.tokens
        if now.shape[0] != known.shape[0] or now.shape[1] <= known.shape[1] or now.dim() != known.dim():
            return False
        return same_tree(source, self.source) and same_tensor(now[:, : known.shape[1]], known)
