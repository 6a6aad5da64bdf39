"""Blind pairs for people to choose from, and what their choices say (paper, section 4.2).

The page shows an input and two results without names, in an order and on sides drawn from a seed.
Which is which stands in a key that lies beside the page's folder, not in it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from scipy.stats import binomtest

from evaluation.comparison import result_path, write_json, write_text
from evaluation.pictures import EvaluationError, Pair, read, write
from evaluation.sheets import PAGES, enlarged

__all__ = ["BadStudy", "Preference", "tally", "write_study"]

CHOICES = ("a", "b", "none")
KEY = "study-key.json"


class BadStudy(EvaluationError):
    """A study's key or its answers cannot be read, or do not belong together."""


@dataclass(frozen=True)
class Preference:
    """How often one method was chosen over another."""

    method: str
    against: str
    won: int
    lost: int
    undecided: int

    @property
    def share(self) -> float | None:
        """Of the decided choices; None when there are none."""
        decided = self.won + self.lost
        return self.won / decided if decided else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of that share (Wilson)."""
        decided = self.won + self.lost
        if not decided:
            return None
        found = binomtest(self.won, decided).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


def write_study(
    pairs: Sequence[Pair], method: str, others: Sequence[str], out: Path, seed: int = 0
) -> Path:
    """Writes `study/index.html` with its pictures, and `study-key.json` beside the folder.

    Args:
        pairs: the pictures.
        method: whose results are judged.
        others: against these; each with every picture.
        out: holds the results of `compare`.
        seed: of the order and the sides.

    Returns:
        The page.
    """
    draw = random.Random(seed)
    trials = [(pair, other) for pair in pairs for other in others]
    draw.shuffle(trials)
    folder, key, shown = out / "study", [], []
    for number, (pair, other) in enumerate(trials, 1):
        sides = [method, other]
        draw.shuffle(sides)
        trial = f"{number:03}"
        for side, name in zip("ab", sides, strict=True):
            # Read and written anew, so that no file is a copy that could be told by its bytes.
            picture = read(result_path(out, name, pair.name))
            write(folder / "pictures" / f"{trial}-{side}.png", picture)
        write(folder / "pictures" / f"{trial}-input.png", enlarged(read(pair.lr), pair.scale))
        key.append({"trial": trial, "picture": pair.name, "a": sides[0], "b": sides[1]})
        shown.append(trial)
    study = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    page = Template((PAGES / "study.html").read_text("utf-8")).substitute(
        study=study, trials=json.dumps(shown)
    )
    write_json(out / KEY, {"study": study, "seed": seed, "method": method, "trials": key})
    write_text(folder / "index.html", page)
    return folder / "index.html"


def tally(key: Path, answers: Sequence[Path]) -> list[Preference]:
    """Counts the choices of any number of judges with the names put back.

    Args:
        key: `study-key.json`.
        answers: files that the page let download.

    Raises:
        BadStudy: a file cannot be read, or belongs to another study.
    """
    held = _json(key)
    try:
        study, method = held["study"], held["method"]
        trials = {trial["trial"]: trial for trial in held["trials"]}
    except (KeyError, TypeError) as error:
        raise BadStudy(f"{key} is no key of a study.") from error
    counts: dict[str, dict[str, int]] = {}
    for path in answers:
        given = _json(path)
        if not isinstance(given, dict) or not isinstance(given.get("answers"), list):
            raise BadStudy(f"{path} holds no answers of a study.")
        if given.get("study") != study:
            raise BadStudy(
                f"{path} answers the study {given.get('study')}, but the key is {study}'s."
            )
        for answer in given["answers"]:
            trial, choice = answer.get("trial"), answer.get("choice")
            if trial not in trials or choice not in CHOICES:
                raise BadStudy(f"{path} has the answer {answer}, which is none to this study.")
            sides = trials[trial]
            other = sides["b"] if sides["a"] == method else sides["a"]
            count = counts.setdefault(other, {"won": 0, "lost": 0, "undecided": 0})
            kind = "undecided" if choice == "none" else "won" if sides[choice] == method else "lost"
            count[kind] += 1
    return [Preference(method, other, **count) for other, count in sorted(counts.items())]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadStudy(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise BadStudy(f"{path} is not JSON: {error}") from error
