"""What the rotary embedding alone would look at: how much q·k of equal vectors decays from the query to every token.

RoPE decays in the long term (RoFormer, arXiv 2104.09864, section 3.4.3), which biases the last token to the image's
bottom, next to the text (arXiv 2412.13180). Read off the tables that a decoder layer is given, so head size, base,
scaling, partial rotation and positions of several axes are the model's own. Where a layer has no such tables there
is no prior, and that is said. Knows no method.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
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
    """A layer that does not rotate, or whose tables are not read; the message says which."""


def kernel(cos: Tensor | ArrayLike, sin: Tensor | ArrayLike, query: int, positions: Sequence[int] | NDArray) -> Floats:
    """q·k of two equal vectors with equal components, rotated to the query and to a position, over that at no distance.

    The mean over the rotated pairs of cos(angle(query) - angle(position)); tables that are scaled as a whole (YaRN)
    give the same.

    Args:
        cos: (sequence, dim) as a decoder layer is given it, or (1, sequence, dim).
        sin: likewise.
        query: place of the query in the sequence.
        positions: (n,) places of the keys.

    Returns:
        (n,), 1 where key and query coincide.

    Raises:
        NoPrior: if the tables have other shapes.
    """
    cosine, sine = _table(cos), _table(sin)
    if cosine.shape != sine.shape:
        raise NoPrior(f"cos has shape {cosine.shape} and sin {sine.shape}; rotary tables have the same.")
    keys = np.asarray(positions, int)
    products = cosine[keys] @ cosine[query] + sine[keys] @ sine[query]
    return products / (cosine[query] @ cosine[query] + sine[query] @ sine[query])


@contextmanager
def heard_tables(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, Any]]:
    """Listen for the `position_embeddings` that decoder layers are given in the next forward.

    Enter it after `feathervlm.prune` or before; a layer is heard as the decoder calls it, with tables of the whole
    sequence. Nothing stays on the model.

    Yields:
        For each layer that ran what it was given first, None if that was nothing.
    """
    heard: dict[int, Any] = {}

    def listen(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            heard.setdefault(layer, kwargs.get("position_embeddings"))

        return hook

    modules = DecoderView(model).layers
    handles = [
        modules[layer].register_forward_pre_hook(listen(layer), with_kwargs=True, prepend=True) for layer in set(layers)
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def prior_layer(decoder: DecoderView, at: int, own: bool = False) -> int:
    """The layer whose attention a stage before layer `at` can be scored with.

    Args:
        decoder: view of the decoder.
        at: layer of the stage.
        own: it is scored with that layer itself; else with the one before, or the nearest that attends in full.

    Raises:
        NoPrior: if that layer does not rotate, or there is none.
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
    """The kernel from the prompt's last token to every cell of an image's finest grid: (frames, rows, cols).

    Args:
        record: of the pruned forward, `report.record`.
        tables: what a decoder layer was given in it, from `heard_tables`.
        batch: number of the sample.
        image: number of its image.

    Raises:
        NoPrior: if the tables are none, or not a pair (cos, sin).
        PruningError: if there is no such sample or image.
    """
    if tables is None:
        raise NoPrior("The layer is given no rotary tables, so no place is nearer than another.")
    if isinstance(tables, Tensor):
        kind = "complex numbers" if tables.is_complex() else "one tensor"
        raise NoPrior(f"The layer is given its rotation as {kind}, not as cos and sin, which is not read here.")
    cos, sin = _pair(tables, batch)
    values = kernel(cos, sin, _last(record, batch), record.layout.positions()[batch].cpu().numpy())
    return on_grid(record.layout, values, batch, image)


def on_grid(layout: VisualLayout, values: NDArray, batch: int = 0, image: int = 0) -> NDArray:
    """Values of a sample's visual tokens (n,) on the finest grid of one of its images: (frames, rows, cols).

    Raises:
        PruningError: if there is no such sample or image.
    """
    try:
        planes = layout.pictures[batch][image]
    except IndexError:
        raise PruningError(f"There is no image {image} in sample {batch}.") from None
    number = finest(planes)[0]
    before = sum(map(tokens_of, layout.pictures[batch][:image])) + sum(plane.size for plane in planes[:number])
    plane = planes[number]
    cells = np.empty(plane.size, values.dtype)
    cells[plane.cells().numpy()] = values[before : before + plane.size]
    return cells.reshape(plane.shape)


def prior_rank_correlation(prior: ArrayLike, heat: ArrayLike) -> float:
    """Spearman's rank correlation of two maps of one shape; NaN if one is the same everywhere.

    Raises:
        PruningError: if the shapes differ.
    """
    one, other = np.asarray(prior, float), np.asarray(heat, float)
    if one.shape != other.shape:
        raise PruningError(f"Maps of {one.shape} and {other.shape} do not show the same cells; resample one of them.")
    first, second = (ranks - ranks.mean() for ranks in (_ranks(one.ravel()), _ranks(other.ravel())))
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale > 0 else np.nan


def prior_overlap(prior: ArrayLike, masks: Sequence[ArrayLike]) -> float:
    """Share of the kept tokens that are among as many cells with the largest prior, mean over masks.

    Random tokens have the kept share. Cells of equal prior count in part where not all of them are among the largest.
    NaN if no mask keeps anything.

    Args:
        prior: (frames, rows, cols).
        masks: each of the same shape.

    Raises:
        PruningError: if the shapes differ.
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
        raise NoPrior(f"Rotary tables of shape {values.shape} are not read here; (sequence, dim) are.")
    return values


def _pair(tables: Any, batch: int) -> tuple[Tensor, Tensor]:
    """cos and sin of one sample, (sequence, dim); tables may be shared by the whole batch."""
    tensors = list(tables) if isinstance(tables, tuple | list) else []
    if len(tensors) != 2 or not all(isinstance(part, Tensor) and part.dim() in (2, 3) for part in tensors):
        raise NoPrior("The layer is given rotary tables of a form that is not read here; a pair (cos, sin) is.")
    cos, sin = (part if part.dim() == 2 else part[batch if len(part) > 1 else 0] for part in tensors)
    return cos, sin


def _last(record: Record, batch: int) -> int:
    """The place that asks: what the layout says, else the last token that is not padding."""
    if record.layout.query is not None:
        return int(record.layout.query[batch])
    if record.attended is None:
        return record.sequence - 1
    return int(torch.nonzero(record.attended[batch])[-1])


def _ranks(values: Floats) -> Floats:
    """Ranks from 0, the mean of them among equals."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[place]
