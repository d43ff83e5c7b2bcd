"""A diagnosis as one HTML page that holds everything: words, figures, tables, pictures. No scripts, no other files."""

import base64
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from feathervlm.diagnosis.findings import LIMITS, grouped
from feathervlm.diagnosis.mask_statistics import Floats
from feathervlm.diagnosis.summary import Number, Spread

if TYPE_CHECKING:
    from feathervlm.diagnosis.run import Diagnosis

KEPT, EVEN = "#1d4ed8", "#c2410c"
LOOK: Any = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",  # no font of the reader's machine is needed
    "svg.hashsalt": "feathervlm",
}
TITLES = {"alarm": "Alarm", "warning": "Warning", "good": "All well", "note": "Note"}


def render(diagnosis: "Diagnosis") -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("feathervlm.diagnosis"),
        autoescape=True,  # files may be called anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": _number, "even": _even}
    return environment.get_template("diagnosis.html.j2").render(
        about=diagnosis.about,
        boxes=[(level, TITLES[level], texts, remedy) for level, texts, remedy in grouped(diagnosis.findings)],
        tokens=diagnosis.average_tokens,
        flops=diagnosis.flops_ratio,
        total=max(one.tokens for one in diagnosis.seen),
        stages=[{"spread": spread, "figures": figures(spread)} for spread in diagnosis.stages],
        pictures=[(one.name, _jpeg(one.overlay)) for one in diagnosis.seen if one.overlay is not None],
        notes=diagnosis.notes,
        limits=list(LIMITS.values()),
    )


def figures(spread: Spread) -> list[dict[str, str]]:
    """Heat map, prior map and profiles of a stage: `source` is a data URI, `caption` says what is to be seen."""
    if not spread.numbers["kept"].value:
        return []
    layer = spread.layer
    shown = [_figure(_map(spread.heat, "share of pictures"), f"Kept before layer {layer}: how often each place stays.")]
    if spread.prior is not None:
        caption = (
            "Where RoPE alone would look: q·k of equal vectors from the last token, by its distance to each place. If "
            "the maps look alike, place decides, not content."
        )
        shown.append(_figure(_map(spread.prior, "q·k"), caption))
    caption = "Share of the kept tokens in each row, top of the picture at the top. Dashed: an even spread."
    shown.append(_figure(lambda axes: _profile(axes, spread.rows, upright=True), caption))
    caption = "Share of the kept tokens in each column. Dashed: an even spread."
    shown.append(_figure(lambda axes: _profile(axes, spread.columns, upright=False), caption))
    return shown


def _figure(draw: Callable[[Axes], None], caption: str) -> dict[str, str]:
    with mpl.rc_context(LOOK):
        figure = Figure((4.2, 3.4), layout="constrained")
        draw(figure.add_subplot())
        stream = BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return {"source": _uri("image/svg+xml", stream.getvalue()), "caption": caption}


def _map(values: Floats, label: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        image = axes.imshow(values, cmap="viridis", vmin=min(float(values.min()), 0.0), interpolation="nearest")
        axes.set_xlabel("column")
        axes.set_ylabel("row")
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


def _number(number: Number) -> str:
    return str(number)


def _even(number: Number) -> Any:
    return "" if number.even is None else f"{number.even:.2f}"
