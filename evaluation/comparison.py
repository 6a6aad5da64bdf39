"""Methods over pairs of images: every result written, scored and timed."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic_core import to_json

from evaluation.images import BadImages, Pair, pixels_of, read, tensor_of, write, write_file
from evaluation.learned import LearnedScores
from evaluation.methods import Method
from evaluation.metrics import BORDER, METRICS, PAPER_SCORES, offline_scores


@dataclass(frozen=True)
class Row:
    """One result, with its scores by the names of METRICS."""

    image: str
    method: str
    seconds: float
    scores: dict[str, float]


@dataclass
class Comparison:
    """All results, and what could not be measured."""

    methods: list[str]
    rows: list[Row] = field(default_factory=list)
    sets: dict[str, dict[str, float]] = field(default_factory=dict)
    """Scores of a method's whole set, such as FID."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Why a score is missing."""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Those that every method has, in the tables' order."""
        return [name for name in METRICS if all(name in self.means(m) for m in self.methods)]

    def means(self, method: str) -> dict[str, float]:
        """Mean of each score over the images, where all of them have it; a set's own scores."""
        rows = [row for row in self.rows if row.method == method]
        names = [n for n in METRICS if rows and all(n in r.scores for r in rows)]
        means = {n: statistics.fmean(r.scores[n] for r in rows) for n in names}
        return means | self.sets.get(method, {})

    def seconds(self, method: str) -> float:
        """Median of an image; what was loaded and warmed up in the first does not count."""
        return statistics.median(row.seconds for row in self.rows if row.method == method)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        methods = {m: {"mean": self.means(m), "seconds": self.seconds(m)} for m in self.methods}
        return {
            "settings": self.settings,
            "methods": methods,
            "pictures": [
                {"picture": r.image, "method": r.method, "seconds": r.seconds, "scores": r.scores}
                for r in self.rows
            ],
            "unavailable": self.unavailable,
            "paper": {name: dict(scores) for name, scores in PAPER_SCORES.items()},
        }


def result_path(out: Path, method: str, image: str) -> Path:
    """Where a result is kept."""
    return out / "results" / method.replace(" ", "-") / f"{image}.png"


def compare(
    pairs: Sequence[Pair],
    methods: Sequence[Method],
    out: Path,
    networks: LearnedScores | None = None,
    border: int = BORDER,
    on_progress: Callable[[str, str], None] = lambda image, method: None,
) -> Comparison:
    """Upscales every input by every method, writes the results under `out`, and scores them.

    Results are rounded to 8 bits before anything is measured. `on_progress` hears the image and
    the method that were just done.

    Raises:
        BadImages: two methods share a name.
        EvaluationError: an image is too small, which is seen before any work, or a method cannot
            upscale by its scale.
    """
    names = [name for method in methods for name in method.names]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise BadImages(f"Two methods are called {', '.join(sorted(twice))}.")
    networks = networks or LearnedScores()
    for pair in pairs:
        original = read(pair.hr)
        offline_scores(original, original, border)
    for name in names:
        # A set's score is of a whole folder: nothing of an earlier comparison may lie in it.
        shutil.rmtree(result_path(out, name, "").parent, ignore_errors=True)
    comparison = Comparison(names)
    for pair in pairs:
        lr, original = read(pair.lr), read(pair.hr)
        for method in methods:
            for result in method.enlarge(tensor_of(lr), pair.scale):
                pixels = pixels_of(result.image)
                write(result_path(out, result.method, pair.name), pixels)
                scores = offline_scores(pixels, original, border)
                scores |= networks.scores(pixels, original)
                comparison.rows.append(Row(pair.name, result.method, result.seconds, scores))
                on_progress(pair.name, result.method)
    with TemporaryDirectory(prefix="originals-") as folder:
        # These pairs' originals alone.
        for pair in pairs:
            (Path(folder) / pair.hr.name).symlink_to(pair.hr.resolve())
        for name in names:
            results = result_path(out, name, "").parent
            comparison.sets[name] = networks.folder_scores(results, Path(folder))
    comparison.unavailable = dict(networks.unavailable)
    return comparison


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, aside first; what is not finite becomes null, which JSON has in its place."""
    write_file(path, to_json(content, indent=2, inf_nan_mode="null").decode() + "\n")
