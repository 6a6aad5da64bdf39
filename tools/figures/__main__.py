"""Draws the figures: `python -m tools.figures --hr FOLDER`; `make figures` names the folder."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from evaluation.images import BadImages, degrade_pixels, list_images, read
from models.errors import ModelError
from models.parameters import preset_parameters
from models.pipeline import StableSR
from tools.figures.ablations import ablations
from tools.figures.page import write_page
from tools.figures.studio import FEW, SCALE, Studio, Subject


def _select(names: Sequence[str], count: int, subject: str | None) -> list[str]:
    """That many names, evenly from all, the shown one first."""
    if subject is not None and subject not in names:
        raise BadImages(f"There is no picture called {subject!r}, but {', '.join(names)}.")
    others = [name for name in names if name != subject]
    count = min(count, len(names)) - (subject is not None)
    even = [others[i * len(others) // count] for i in range(count)]
    return even if subject is None else [subject, *even]


def draw(
    sr: StableSR,
    hr: Path,
    out: Path,
    *,
    count: int = 4,
    longest: int = 200,
    subject: str | None = None,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Draws every figure into `out/images` and writes `out/figures.md`.

    Args:
        sr: the model.
        hr: folder of originals; their sides must be multiples of 4.
        out: folder of the page.
        count: pictures that are used, evenly chosen in the order of their names.
        longest: the most steps that are tried.
        subject: name of the picture in the sheets, one more if need be; the first when None.
        seed: of degradation and noise.
        on_progress: hears what was just done.

    Raises:
        BadImages: of the originals.
    """
    files = list_images(hr)
    pictures = []
    for name in _select(list(files), count, subject):
        original = read(files[name])
        pictures.append(
            Subject(name, degrade_pixels(original, name, SCALE, "paper", seed), original)
        )
    options = preset_parameters(sr.preset, scale=SCALE, seed=seed)
    began = time.perf_counter()
    studio = Studio(sr, pictures, options, out / "images")
    studio.guidance()
    on_progress("guidance over timesteps")
    studio.time_awareness()
    on_progress("time awareness")
    studio.color_correction()
    on_progress("colour correction")
    studio.fidelity(on_progress)
    seams = studio.aggregation(on_progress)
    studio.steps(longest, on_progress)
    results = ablations(sr, [(p.name, p.lr, p.original) for p in pictures], options, on_progress)
    write_page(
        out / "figures.md",
        preset=sr.preset,
        pictures=[p.name for p in pictures],
        few=len(pictures[:FEW]),
        ablations=results,
        seams=seams,
        date=datetime.date.today(),
        minutes=(time.perf_counter() - began) / 60,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.figures")
    parser.add_argument("--hr", type=Path, required=True, help="the folder of originals")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--photographs", type=int, default=4, help="how many of them are used")
    parser.add_argument("--longest", type=int, default=200, help="the most steps that are tried")
    parser.add_argument("--shown", help="which of them the sheets show; else the first")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="images/ and figures.md")
    options = parser.parse_args(arguments)
    try:
        # A fused network has no modulation of its own to look at.
        sr = StableSR.from_preset(options.preset, options.device, fuse=False)
        draw(
            sr,
            options.hr,
            options.out,
            count=options.photographs,
            longest=options.longest,
            subject=options.shown,
            on_progress=print,
        )
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
