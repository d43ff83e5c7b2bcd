"""A diagnosis as one HTML page that holds everything: words, figures, tables, pictures. No scripts, no other files."""

import base64
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from feathervlm.diagnosis.findings import LIMITS, Finding, grouped
from feathervlm.diagnosis.mask_statistics import Floats
from feathervlm.diagnosis.observe import Observation
from feathervlm.diagnosis.summary import StageSummary, Statistic
from feathervlm.utils import templates
from feathervlm.utils.plotting import style

KEPT, EVEN = "#1d4ed8", "#c2410c"
TITLES = {"alarm": "Alarm", "warning": "Warning", "good": "All well", "note": "Note"}


def render(
    about: Mapping[str, Any],
    findings: Sequence[Finding],
    stages: Sequence[StageSummary],
    observations: Sequence[Observation],
    average_tokens: Statistic,
    flops_ratio: Statistic,
    notes: Sequence[str],
) -> str:
    """Return the page; the arguments are the attributes of a `Diagnosis`."""
    return templates.render(
        "feathervlm.diagnosis",
        "diagnosis.html.j2",
        {"number": str, "even": lambda number: "" if number.even is None else f"{number.even:.2f}"},
        about=about,
        boxes=[(level, TITLES[level], texts, remedy) for level, texts, remedy in grouped(findings)],
        tokens=average_tokens,
        flops=flops_ratio,
        total=max(one.tokens for one in observations),
        stages=[{"summary": summary, "figures": figures(summary)} for summary in stages],
        pictures=[(one.name, _jpeg(one.overlay)) for one in observations if one.overlay is not None],
        notes=notes,
        limits=list(LIMITS.values()),
    )


def figures(summary: StageSummary) -> list[dict[str, str]]:
    """Return heat map, prior map and profiles of a stage, each with `source`, a data URI, and `caption`."""
    if not summary.numbers["kept"].value:
        return []
    caption = f"Kept before layer {summary.layer}: how often each place stays."
    shown = [_figure(_map(summary.heat, "share of pictures"), caption)]
    if summary.prior is not None:
        caption = (
            "Where RoPE alone would put attention: q·k of equal vectors from the last token, by its distance to each "
            "place. If the maps look alike, place decides, not content."
        )
        shown.append(_figure(_map(summary.prior, "q·k"), caption))
    caption = "Share of the kept tokens in each row, top of the picture at the top. Dashed: an even spread."
    shown.append(_figure(lambda axes: _profile(axes, summary.rows, upright=True), caption))
    caption = "Share of the kept tokens in each column. Dashed: an even spread."
    shown.append(_figure(lambda axes: _profile(axes, summary.columns, upright=False), caption))
    return shown


def _figure(draw: Callable[[Axes], None], caption: str) -> dict[str, str]:
    with style(svg_fonttype="path"):  # text as paths needs no font of the reader's machine
        figure = Figure((4.2, 3.4), layout="constrained")
        draw(figure.add_subplot())
        stream = BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return {"source": _uri("image/svg+xml", stream.getvalue()), "caption": caption}


def _map(values: Floats, label: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        image = axes.imshow(values, cmap="viridis", vmin=min(float(values.min()), 0.0), interpolation="nearest")
        axes.grid(False)
        axes.set(xlabel="column", ylabel="row")
        assert isinstance(axes.figure, Figure)
        axes.figure.colorbar(image, ax=axes, label=label)

    return draw


def _profile(axes: Axes, shares: Floats, upright: bool) -> None:
    place = np.arange(len(shares))
    if upright:
        axes.barh(place, shares, color=KEPT, height=0.85)
        axes.axvline(1 / len(shares), color=EVEN, linestyle="--")
        axes.set(ylim=(len(shares) - 0.5, -0.5), ylabel="row", xlabel="share of the kept tokens")
    else:
        axes.bar(place, shares, color=KEPT, width=0.85)
        axes.axhline(1 / len(shares), color=EVEN, linestyle="--")
        axes.set(xlim=(-0.5, len(shares) - 0.5), xlabel="column", ylabel="share of the kept tokens")


def _jpeg(picture: Image.Image) -> str:
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return _uri("image/jpeg", stream.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
