"""Curves, drawn the same on every machine: SVG without dates and with fixed identifiers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

from evaluation.images import write_file

_COLORS = ("#1f5fa8", "#d1662b", "#3b8f4a", "#8450a0", "#777777")
_STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "font.size": 10,
    "legend.frameon": False,
    "svg.hashsalt": "stablesr",
}


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    label: str
    """Of the y axis"""
    lines: Mapping[str, Sequence[float]]
    level: float | None = None
    """A horizontal line, such as bicubic enlargement's"""
    level_name: str = "bicubic"


def _save(figure: Figure, path: Path) -> None:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    # Trailing blanks are matplotlib's; a repository has none.
    write_file(path, "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n")


def draw_guidance(
    path: Path,
    timesteps: Sequence[int],
    lines: Mapping[str, Sequence[float]],
    by_size: Mapping[int, Sequence[float]],
    snr: Sequence[float],
) -> None:
    """Cosine similarity over timesteps, and by resolution, beside the signal to noise ratio."""
    with style.context(_STYLE):
        figure = Figure(figsize=(10, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, curves in (
            (left, lines),
            (
                right,
                {f"1/{n} of the latent" if n > 1 else "latent size": v for n, v in by_size.items()},
            ),
        ):
            for color, (name, values) in zip(_COLORS, curves.items(), strict=False):
                axes.plot(timesteps, values, marker=".", color=color, label=name)
            axes.set_xlabel("timestep (999 is noise; sampling runs to the left)")
            axes.set_xlim(0, 1000)
            noise = axes.twinx()
            noise.plot(timesteps, snr, color="#999999", linestyle="--", label="signal to noise")
            noise.set_yscale("log")
            noise.grid(False)
            noise.spines["right"].set_visible(True)
            if axes is right:
                noise.set_ylabel("signal to noise ratio (dashed)")
            else:
                noise.set_yticklabels([])
                noise.tick_params(which="both", right=False)
            axes.legend(loc="best")
        left.set_ylabel("cosine similarity before and after")
        left.set_title("all residual blocks")
        right.set_title("by resolution")
        _save(figure, path)


def draw_panels(
    path: Path, label: str, at: Sequence[float], panels: Sequence[Panel], *, log: bool = False
) -> None:
    """The same x under several y, side by side."""
    with style.context(_STYLE):
        figure = Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for color, (name, values) in zip(_COLORS, panel.lines.items(), strict=False):
                axes.plot(at, values, marker="o", markersize=4, color=color, label=name)
            if panel.level is not None:
                axes.axhline(panel.level, color="#999999", linestyle="--", label=panel.level_name)
            if log:
                axes.set_xscale("log")
                axes.set_xticks(list(at), [f"{x:g}" for x in at])
                axes.minorticks_off()
            axes.set_xlabel(label)
            axes.set_ylabel(panel.label)
            if len(panel.lines) > 1 or panel.level is not None:
                axes.legend(loc="best", fontsize=8)
        _save(figure, path)


def draw_profiles(path: Path, near: int, lines: Mapping[str, Sequence[float]]) -> None:
    """Change between neighbouring pixels at each distance from the borders of tiles."""
    with style.context(_STYLE):
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes = figure.subplots()
        for color, (name, values) in zip(_COLORS, lines.items(), strict=False):
            axes.plot(range(-near, near + 1), values, color=color, label=name)
        axes.axvline(0, color="#999999", linestyle=":", zorder=0)
        axes.set_xlabel("pixels from where tiles meet")
        axes.set_ylabel("mean difference of neighbours in Y")
        axes.legend(loc="upper right")
        _save(figure, path)
