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

from evaluation.comparison import result_path, write_json
from evaluation.images import EvaluationError, Pair, read, write, write_file
from evaluation.sheets import PAGES, magnify

CHOICES = ("a", "b", "none")
KEY = "study-key.json"


class BadStudy(EvaluationError):
    """A study's key or its answers cannot be read, or do not belong together."""


@dataclass(frozen=True)
class Preference:
    """How often one method was chosen over another."""

    method: str
    against: str
    wins: int
    losses: int
    ties: int
    """Undecided."""

    @property
    def share(self) -> float | None:
        """Of the decided choices; None when there are none."""
        decisions = self.wins + self.losses
        return self.wins / decisions if decisions else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of that share (Wilson)."""
        if self.share is None:
            return None
        test = binomtest(self.wins, self.wins + self.losses)
        interval = test.proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)


def write_study(
    pairs: Sequence[Pair], method: str, others: Sequence[str], out: Path, seed: int = 0
) -> Path:
    """Writes `study/index.html` with its images into `out`, which holds the results of `compare`,
    and `study-key.json` beside it; returns the page.

    Results of `method` are judged against those of each of the others, on every image.
    """
    draw = random.Random(seed)
    trials = [(pair, other) for pair in pairs for other in others]
    draw.shuffle(trials)
    folder, key = out / "study", []
    for number, (pair, other) in enumerate(trials, 1):
        sides = [method, other]
        draw.shuffle(sides)
        trial = f"{number:03}"
        for side, name in zip("ab", sides, strict=True):
            # Read and written anew, so that no file is a copy that could be told by its bytes.
            image = read(result_path(out, name, pair.name))
            write(folder / "pictures" / f"{trial}-{side}.png", image)
        write(folder / "pictures" / f"{trial}-input.png", magnify(read(pair.lr), pair.scale))
        key.append({"trial": trial, "picture": pair.name, "a": sides[0], "b": sides[1]})
    study = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    page = Template((PAGES / "study.html").read_text("utf-8")).substitute(
        study=study, trials=json.dumps([entry["trial"] for entry in key])
    )
    write_json(out / KEY, {"study": study, "seed": seed, "method": method, "trials": key})
    write_file(folder / "index.html", page)
    return folder / "index.html"


def tally(key: Path, answers: Sequence[Path]) -> list[Preference]:
    """Counts the choices of any number of judges, in files that the page let download, with the
    names of `study-key.json` put back.

    Raises:
        BadStudy: a file cannot be read, or belongs to another study.
    """
    content = _json(key)
    try:
        study, method = content["study"], content["method"]
        trials = {trial["trial"]: trial for trial in content["trials"]}
    except (KeyError, TypeError) as error:
        raise BadStudy(f"{key} is no key of a study.") from error
    counts: dict[str, dict[str, int]] = {}
    for path in answers:
        content = _json(path)
        if not isinstance(content, dict) or not isinstance(content.get("answers"), list):
            raise BadStudy(f"{path} holds no answers of a study.")
        if content.get("study") != study:
            raise BadStudy(
                f"{path} answers the study {content.get('study')}, but the key is {study}'s."
            )
        for answer in content["answers"]:
            trial, choice = answer.get("trial"), answer.get("choice")
            if trial not in trials or choice not in CHOICES:
                raise BadStudy(f"{path} has the answer {answer}, which is none to this study.")
            sides = trials[trial]
            other = sides["b"] if sides["a"] == method else sides["a"]
            count = counts.setdefault(other, {"wins": 0, "losses": 0, "ties": 0})
            winner = sides.get(choice)
            count["ties" if winner is None else "wins" if winner == method else "losses"] += 1
    return [Preference(method, other, **count) for other, count in sorted(counts.items())]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadStudy(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise BadStudy(f"{path} is not JSON: {error}") from error
