"""The RoPE prior: how much q·k of equal vectors decays from the query to every visual token.

RoPE decays in the long term (RoFormer, arXiv 2104.09864, section 3.4.3), which biases the last token to the image's
bottom, next to the text (arXiv 2412.13180). The prior is read from the tables that a decoder layer is given, so head
size, base, scaling, partial rotation and positions of several axes are the model's own. `NoPrior` says why a layer
has no prior.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import VisualLayout, tokens_of
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.report.records import Record
from feathervlm.engine.report.report import finest
from feathervlm.evaluation.samples import as_grid
from feathervlm.families import rotary_rules

Floats = NDArray[np.float64]


class NoPrior(PruningError):  # noqa: N818 - as Unprunable
    """A layer has no RoPE prior: it does not rotate, or its tables have a form that is not supported."""


def kernel(cos: Tensor | ArrayLike, sin: Tensor | ArrayLike, query: int, positions: Sequence[int] | NDArray) -> Floats:
    """Return q·k of two equal vectors, rotated to the query and to each key, relative to q·k at distance zero.

    This is the mean over the rotated pairs of cos(angle(query) - angle(position)). A common factor of both tables
    (YaRN) has no effect.

    Args:
        cos: Cosines of shape (sequence, dim) or (1, sequence, dim), as a decoder layer is given them.
        sin: Sines of the same shape.
        query: Index of the query in the sequence.
        positions: Indices of the keys of shape (n,).

    Returns:
        Values of shape (n,); 1 where key and query coincide.

    Raises:
        NoPrior: The tables have other shapes.
    """
    cosine, sine = _table(cos), _table(sin)
    if cosine.shape != sine.shape:
        raise NoPrior(f"cos has shape {cosine.shape} and sin {sine.shape}; give rotary tables of one shape.")
    keys = np.asarray(positions, int)
    products = cosine[keys] @ cosine[query] + sine[keys] @ sine[query]
    return products / (cosine[query] @ cosine[query] + sine[query] @ sine[query])


@contextmanager
def recorded_tables(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, Any]]:
    """Record the `position_embeddings` that decoder layers are given in the first forward inside the context.

    Works inside and outside `feathervlm.prune`: the hooks run before those of a pruned layer, so the tables are those
    of the whole sequence. The hooks are removed on exit.

    Yields:
        The tables of each layer that has run; None for a layer that was given none.
    """
    recorded: dict[int, Any] = {}

    def record(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            recorded.setdefault(layer, kwargs.get("position_embeddings"))

        return hook

    modules = DecoderView(model).layers
    handles = [
        modules[layer].register_forward_pre_hook(record(layer), with_kwargs=True, prepend=True) for layer in set(layers)
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def prior_layer(decoder: DecoderView, at: int, own: bool = False) -> int:
    """Return the layer whose attention scores a stage before layer `at`.

    Args:
        decoder: View of the decoder.
        at: Layer of the stage.
        own: Whether layer `at` itself gives the scores. Else the previous layer does, or the nearest before it with
            full attention.

    Raises:
        NoPrior: That layer does not rotate queries and keys, or does not exist.
    """
    try:
        layer = at if own else decoder.scoring_layer(max(at - 1, 0))[0]
        rotates = rotary_rules(decoder.model).rotates(layer)
    except PruningError as error:
        raise NoPrior(str(error)) from error
    if not rotates:
        raise NoPrior(f"Layer {layer} does not rotate queries and keys, so no place is nearer than another.")
    return layer


def prior_map(record: Record, tables: Any, *, batch: int = 0, image: int = 0) -> Floats:
    """Return the kernel from the prompt's last token to every cell of an image's finest grid.

    Args:
        record: Record of the pruned forward, `report.record`.
        tables: Tables of a decoder layer in that forward, from `recorded_tables`.
        batch: Index of the sample.
        image: Index of its image.

    Returns:
        Values of shape (frames, rows, cols).

    Raises:
        NoPrior: There are no tables, or they are not a pair (cos, sin).
        PruningError: There is no such sample or image.
    """
    if tables is None:
        raise NoPrior("The layer is given no rotary tables, so no place is nearer than another.")
    if isinstance(tables, Tensor):
        kind = "complex numbers" if tables.is_complex() else "one tensor"
        raise NoPrior(f"The layer is given its rotation as {kind}; only a pair (cos, sin) is supported.")
    cos, sin = _pair(tables, batch)
    values = kernel(cos, sin, int(record.query[batch, 0]), record.layout.positions()[batch].cpu().numpy())
    return on_grid(record.layout, values, batch, image)


def on_grid(layout: VisualLayout, values: NDArray, batch: int = 0, image: int = 0, plane: int | None = None) -> NDArray:
    """Return values of a sample's visual tokens on a grid of one of its images.

    Args:
        layout: Layout of the visual tokens.
        values: One value per visual token of the sample, shape (n,).
        batch: Index of the sample.
        image: Index of its image.
        plane: Index of the grid; None for the finest.

    Returns:
        Values of shape (frames, rows, cols).

    Raises:
        PruningError: There is no such sample or image.
    """
    try:
        planes = layout.pictures[batch][image]
    except IndexError:
        raise PruningError(f"There is no image {image} in sample {batch}.") from None
    number = finest(planes)[0] if plane is None else plane
    before = sum(map(tokens_of, layout.pictures[batch][:image])) + sum(other.size for other in planes[:number])
    grid = planes[number]
    cells = np.empty(grid.size, values.dtype)
    cells[grid.cells().numpy()] = values[before : before + grid.size]
    return cells.reshape(grid.shape)


def prior_rank_correlation(prior: ArrayLike, heat: ArrayLike) -> float:
    """Return Spearman's rank correlation of two maps of one shape; NaN if one of them is constant.

    Raises:
        PruningError: The shapes differ.
    """
    one, other = np.asarray(prior, float), np.asarray(heat, float)
    if one.shape != other.shape:
        raise PruningError(f"Maps of {one.shape} and {other.shape} do not show the same cells; resample one of them.")
    first, second = (ranks - ranks.mean() for ranks in (_ranks(one.ravel()), _ranks(other.ravel())))
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale > 0 else np.nan


def prior_overlap(prior: ArrayLike, masks: Sequence[ArrayLike]) -> float:
    """Return the share of the kept tokens that are among as many cells with the largest prior, mean over masks.

    The expected value for random tokens is the share of kept tokens. Where only some of several cells of equal prior
    are among the largest, each of them counts in part. The result is NaN if no mask keeps anything.

    Args:
        prior: Values of shape (frames, rows, cols).
        masks: Masks of the same shape.

    Raises:
        PruningError: The shapes differ.
    """
    values = np.asarray(prior, float)
    shares = []
    for mask in masks:
        grid = as_grid(mask)
        if grid.size != values.size:
            raise PruningError(f"A prior of {values.shape} and a mask of {grid.shape} do not show the same cells.")
        count = int(grid.sum())
        if count:
            border = np.partition(values.ravel(), -count)[-count]
            above, tied = values > border, values == border
            weights = above + tied * ((count - above.sum()) / tied.sum())
            shares.append(float((weights.reshape(grid.shape) * grid).sum() / count))
    return float(np.mean(shares)) if shares else np.nan


def _table(table: Tensor | ArrayLike) -> Floats:
    values = table.detach().double().cpu().numpy() if isinstance(table, Tensor) else np.asarray(table, float)
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2:
        raise NoPrior(f"Rotary tables of shape {values.shape} are not supported; only (sequence, dim) is.")
    return values


def _pair(tables: Any, batch: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of one sample, (sequence, dim); the whole batch may share one table."""
    tensors = list(tables) if isinstance(tables, tuple | list) else []
    if len(tensors) != 2 or not all(isinstance(part, Tensor) and part.dim() in (2, 3) for part in tensors):
        raise NoPrior("The layer is given rotary tables of an unsupported form; only a pair (cos, sin) is supported.")
    cos, sin = (part if part.dim() == 2 else part[batch if len(part) > 1 else 0] for part in tensors)
    return cos, sin


def _ranks(values: Floats) -> Floats:
    """Return ranks from 0; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[place]
