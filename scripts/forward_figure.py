"""Record one pruned forward of the embedded model, and draw it as the figure of docs/concepts.md.

The forward is that of the first held-out `locate` question under FEATHER at the layers that all commands use. Its
record is committed; `generate_docs.py` draws it, so that the figure depends on no machine. The SVG is 400 units wide
and has a background of its own, light or dark as the system is, so that it can be read on pages of either kind.

Example: python scripts/forward_figure.py --out results/embedded/forward.json
"""

import argparse
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from feathervlm.embedded.assets import METHODS
from feathervlm.embedded.tasks import HELD_OUT, sample
from feathervlm.evaluation.samples import pack, unpack
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import load
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt
from feathervlm.utils import files
from feathervlm.utils.provenance import provenance

WIDTH, LEFT, RIGHT = 400, 16, 384
PATCH, PITCH, WORD = 7, 12, 5
"""Side of a patch, distance of two layers, and width of a token of text; visual tokens are narrower to fit."""
STYLE = """
    text { font: 12.5px system-ui, sans-serif; fill: var(--ink) }
    .small { font-size: 11.5px; fill: var(--soft) } .number { font-weight: 700; fill: var(--card); text-anchor: middle }
    .card { fill: var(--card); stroke: var(--line) } .disc { fill: var(--ink) }
    .visual { fill: #4f8fdc } .words { fill: #c9820a } .query { fill: #d1435b } .gone { fill: var(--line) }
    svg { --card: #ffffff; --ink: #1d242c; --soft: #53606d; --line: #d5dbe1 }
    @media (prefers-color-scheme: dark) { svg { --card: #1c2128; --ink: #e8ecf0; --soft: #aab5c0; --line: #3d4650 } }
"""
"""Colours of both backgrounds; those of tokens are the same on either."""


def record() -> dict[str, Any]:
    """Return what the figure shows of the forward, as plain values."""
    answerer = Answerer(load(ModelSpec()))
    scene, question = sample("locate", HELD_OUT, 0)
    report = answerer.look([Prompt(question.text, (scene.image,))], METHODS[1])
    rows, cols = report.grid()[0].shape
    patches = scene.image.convert("RGB").resize((cols, rows), 4)  # 4: the mean of the pixels of a patch
    return {
        "provenance": provenance(),
        "question": question.text,
        "method": report.method,
        "shape": [rows, cols],
        "patches": [[f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in _pixels(patches)]],
        "text_tokens": report.layout.mask.shape[1] - rows * cols,
        "stages": [
            {"layer": stage.layer, "kept": pack(report.grid(stage=number)[0])}
            for number, stage in enumerate(report.stages)
        ],
        "tokens_per_layer": report.tokens_per_layer[0],
    }


def _pixels(picture: Any) -> list[tuple[int, int, int]]:
    return [picture.getpixel((col, row)) for row in range(picture.height) for col in range(picture.width)]


def draw(document: dict[str, Any]) -> str:
    """Return the figure of a recorded forward as SVG."""
    return Figure(document).svg()


class Figure:
    """The drawing, from top to bottom; `y` is where the next part begins."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document, self.parts, self.y = document, list[str](), 16.0
        self.counts: list[int] = document["tokens_per_layer"]

    def svg(self) -> str:
        """Draw all parts and return the file."""
        stages = {stage["layer"]: stage for stage in self.document["stages"]}
        self.picture()
        first = 0
        for layer in [*stages, len(self.counts)]:
            self.layers(first, layer)
            if layer in stages:
                self.stage(stages[layer], self.counts[layer - 1], self.counts[layer])
            first = layer
        self.end()
        title = f"One pruned forward of the embedded model under {self.document['method']}"
        steps = ", then ".join(
            f"{self.counts[layer]} of {self.counts[0]} visual tokens from layer {layer} on" for layer in stages
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.y:g}" width="{WIDTH}" role="img" '
                'aria-labelledby="title description">',
                f'<title id="title">{escape(title)}</title>',
                f'<desc id="description">All {self.counts[0]} visual tokens enter the first layers; {steps}.</desc>',
                f"<style>{STYLE}</style>",
                f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{self.y - 1:g}" rx="8"/>',
                *self.parts,
                "</svg>\n",
            ]
        )

    def picture(self) -> None:
        """Draw the picture in patches, and the steps before the language model."""
        rows = self.document["shape"][0]
        self.patches(LEFT, self.y, [True] * self.counts[0])
        at, middle = LEFT + rows * PATCH + 14, self.y
        for number, lines in (
            (1, ("prune() puts hooks on the model",)),
            (2, ("the family finds the visual tokens", f"and their grid, {rows} x {rows}")),
            (3, ("the vision encoder and the projector", f"turn {self.counts[0]} patches into tokens")),
        ):
            self.step(at, middle, number, lines)
            middle += 18 * len(lines) + 14
        self.y += rows * PATCH + 22
        self.text(LEFT, self.y, f"Prompt: the picture, then \u201c{self.document['question']}\u201d")
        x = LEFT
        for kind, label in (("visual", "visual tokens"), ("words", "text"), ("query", "last token of the prompt")):
            self.box(kind, x, self.y + 11, 10, PITCH - 3)
            self.text(x + 14, self.y + 19, label, "small")
            x += 26 + 6 * len(label)
        self.y += 34

    def layers(self, first: int, end: int) -> None:
        """Draw the layers from `first` to the one before `end`, each as wide as it has tokens."""
        count = self.counts[first]
        words = self.document["text_tokens"]
        scale = (RIGHT - LEFT - WORD * words - 76) / self.counts[0]
        for _ in range(first, end):
            x = LEFT + count * scale + 1
            self.box("visual", LEFT, self.y, count * scale, PITCH - 3)
            for word in range(words):
                self.box("words" if word < words - 1 else "query", x + WORD * word, self.y, WORD - 1, PITCH - 3)
            self.y += PITCH
        middle = self.y - (end - first) * PITCH / 2 + 2
        x = RIGHT - 70
        self.text(x, middle - 6, f"layers {first}\u2013{end - 1}", "small")
        self.text(x, middle + 9, f"{count} visual", "small")
        self.y += 12

    def stage(self, stage: dict[str, Any], before: int, after: int) -> None:
        """Draw what a stage keeps, and its steps."""
        kept = unpack(stage["kept"], self.document["shape"]).ravel().tolist()
        rows = self.document["shape"][0]
        self.patches(LEFT, self.y, kept)
        at = LEFT + rows * PATCH + 14
        self.text(at, self.y + 11, f"Stage before layer {stage['layer']}")
        self.step(at, self.y + 22, 4, ("the last token of the prompt scores", "the visual tokens that are there"))
        self.step(at, self.y + 63, 5, (f"{after} of {before} tokens stay; the rows of", "the others are dropped"))
        self.y += rows * PATCH + 16

    def end(self) -> None:
        """Draw the steps after the last layer."""
        for number, lines in (
            (6, ("each layer caches the keys and values of its", "tokens: a bar is as long as the cache of its layer")),
            (7, ("after the last layer the rows return to their", "places; decoding uses the pruned cache")),
            (8, ("pruning.report says what stayed and what it cost",)),
        ):
            self.step(LEFT, self.y, number, lines)
            self.y += 16 * len(lines) + 12

    def patches(self, x: float, y: float, kept: Iterable[bool]) -> None:
        """Draw the picture with its kept patches; one path for each colour."""
        cols = self.document["shape"][1]
        paths: dict[str, list[str]] = {}
        for number, (colour, stays) in enumerate(zip(self.document["patches"][0], kept, strict=True)):
            row, col = divmod(number, cols)
            place = f"M{x + col * PATCH:g} {y + row * PATCH:g}h6v6h-6z"
            paths.setdefault(f'fill="{colour}"' if stays else 'class="gone"', []).append(place)
        self.parts += [f'<path {look} d="{"".join(places)}"/>' for look, places in paths.items()]

    def step(self, x: float, y: float, number: int, lines: Iterable[str]) -> None:
        """Draw a numbered step; the numbers are those of the list in docs/concepts.md."""
        self.parts.append(f'<circle class="disc" cx="{x + 8:g}" cy="{y + 8:g}" r="8"/>')
        self.text(x + 8, y + 12.5, str(number), "number")
        for line, text in enumerate(lines):
            self.text(x + 22, y + 12.5 + 16 * line, text)

    def box(self, kind: str, x: float, y: float, width: float, height: float) -> None:
        """Draw a rectangle of a class of the style sheet."""
        self.parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="1.5"/>')

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Write a line whose baseline is at `y`."""
        look = f'class="{kind}" ' if kind else ""
        self.parts.append(f'<text {look}x="{x:g}" y="{y:g}">{escape(text)}</text>')


def main() -> None:
    """Read the command line and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/embedded/forward.json"))
    arguments = parser.parse_args()
    files.write_json(arguments.out, record())
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
