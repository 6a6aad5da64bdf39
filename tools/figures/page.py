"""The page about the figures: its text is a template, its numbers are those just measured."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from string import Template

from evaluation.images import write_file
from evaluation.metrics import METRICS
from models.presets import Preset
from tools.figures.ablations import ABLATED_TIME, Ablation, Worth

_DIGITS = {name: metric.digits for name, metric in METRICS.items()} | {"seam": 2}
_LABELS = {name: metric.label for name, metric in METRICS.items()} | {"seam": "seam ratio"}
# Further from 1 is worse, but no picture of ours has less than 1 for another reason than chance.
_LOWER = {name for name, metric in METRICS.items() if not metric.higher_is_better} | {"seam"}


def write_page(
    path: Path,
    *,
    preset: Preset,
    pictures: Sequence[str],
    few: int,
    ablations: Sequence[Ablation],
    seams: Sequence[tuple[str, float, float]],
    date: datetime.date,
    minutes: float,
) -> None:
    """Writes the page.

    Args:
        path: where.
        preset: whose weights were used.
        pictures: the names of all that were used.
        few: how many of them the long experiments used.
        ablations: what each part is worth.
        seams: name, seam ratio and seconds of each way to tile.
        date: of the run.
        minutes: that it took.
    """
    text = Template(Path(__file__).with_name("page.md").read_text("utf-8")).substitute(
        preset=preset.name,
        steps=preset.steps,
        weight=f"{preset.fidelity_weight:g}",
        native=preset.native,
        double=2 * preset.native,
        input=preset.native // 4,
        tile=preset.tile // 2,
        time=ABLATED_TIME,
        date=date.isoformat(),
        minutes=f"{minutes:.0f}",
        count=len(pictures),
        names=", ".join(pictures),
        few=few,
        seams="\n".join(f"| {name} | {r:.2f} | {s:.1f} |" for name, r, s in seams),
        ablations="\n".join(_rows(ablations)),
    )
    write_file(path, text)


def _rows(ablations: Sequence[Ablation]) -> list[str]:
    names = ("psnr", "ssim", "niqe", "seam")
    rows = []
    for ablation in ablations:
        worths = {w.score: w for w in ablation.worths}
        cells = [_cell(worths[n]) if n in worths else "" for n in names]
        rows.append(
            f"| {ablation.part} | {ablation.weight} | {' | '.join(cells)} | "
            f"{_verdict(ablation.worths)} |"
        )
    return rows


def _cell(worth: Worth) -> str:
    digits = _DIGITS[worth.score]
    return (
        f"{worth.with_part:.{digits}f}/{worth.without:.{digits}f} "
        f"({worth.gain:+.{digits}f}±{worth.error:.{digits}f})"
    )


def _verdict(worths: Sequence[Worth]) -> str:
    """Which scores the part betters and worsens by more than chance, in words."""
    better: list[str] = []
    worse: list[str] = []
    for worth in worths:
        if worth.measurable:
            good = (worth.gain < 0) == (worth.score in _LOWER)
            (better if good else worse).append(_LABELS[worth.score])
    if not better and not worse:
        return "nothing measurable"
    parts = [f"better {', '.join(better)}"] if better else []
    return "; ".join([*parts, f"worse {', '.join(worse)}"] if worse else parts)
