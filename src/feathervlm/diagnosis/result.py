"""The result of a diagnosis: plain values for JSON, a page, a few lines of text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feathervlm.diagnosis.findings import Finding, grouped
from feathervlm.diagnosis.observe import Observation
from feathervlm.diagnosis.page import render
from feathervlm.diagnosis.summary import StageSummary, Statistic
from feathervlm.evaluation.samples import pack
from feathervlm.utils import files


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The result of a diagnosis.

    Attributes:
        about: Model, method, prompt, pictures and versions as plain values.
        findings: Findings in words, the worst first.
        stages: Numbers of every stage.
        observations: What the method keeps of each picture.
        average_tokens: Visual tokens per layer.
        flops_ratio: FLOPs of the prefill over those of the unpruned one.
        notes: Notes of the reports.
    """

    about: dict[str, Any]
    findings: list[Finding]
    stages: list[StageSummary]
    observations: list[Observation]
    average_tokens: Statistic
    flops_ratio: Statistic
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON: no NaN, and masks as `samples.unpack` reads them."""
        pictures = [
            {
                "name": one.name,
                "grid": list(one.masks[0].shape) if one.masks else None,
                "tokens": one.tokens,
                "kept": [pack(mask) for mask in one.masks],
            }
            for one in self.observations
        ]
        return {
            "about": self.about,
            "findings": [finding.to_dict() for finding in self.findings],
            "average_tokens": self.average_tokens.to_dict(),
            "flops_ratio": self.flops_ratio.to_dict(),
            "stages": [stage.to_dict() for stage in self.stages],
            "notes": self.notes,
            "pictures": pictures,
        }

    def to_html(self) -> str:
        """Return the page."""
        return render(**vars(self))

    def write(self, out: Path | str) -> list[Path]:
        """Write `diagnosis.html` and `diagnosis.json` to a directory, which is made, and return their paths.

        Raises:
            PruningError: The files cannot be written.
        """
        folder = Path(out)
        files.make_directory(folder)
        page, numbers = folder / "diagnosis.html", folder / "diagnosis.json"
        files.write_page(page, self.to_html())
        files.write_json(numbers, self.to_dict())
        return [page, numbers]

    def __str__(self) -> str:
        lines = [f"{self.about['method']} on {self.about['model']}, {len(self.observations)} pictures"]
        lines += [f"{self.average_tokens} visual tokens per layer, {self.flops_ratio} of the prefill FLOPs"]
        for level, texts, remedy in grouped(self.findings):
            lines += [f"{level}: {text}" for text in texts] + ([f"    {remedy}"] if remedy else [])
        return "\n".join(lines)
