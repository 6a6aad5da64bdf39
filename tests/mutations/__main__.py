"""Breaks the product on purpose, in a copy, and sees whether its tests notice.

    python -m tests.mutations [WORD ...]

The tests of a break must pass without it and fail with it. Ends with 1 when a break went unnoticed
or could not be made.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.mutations.breaks import BREAKS, Break

ROOT = Path(__file__).parents[2]
# Of pytest: tests failed, rather than that there were none or that they could not be read.
PASSED, FAILED = 0, 1
TESTS_S = 300


@dataclass(frozen=True)
class Outcome:
    mutation: Break
    seconds: float
    test: str = ""
    """The first that failed."""
    fault: str = ""


def copy(folder: Path) -> None:
    """The tree as it is here, without what git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        source, target = ROOT / name, folder / name
        # A file that was removed and is not committed yet is named all the same.
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def run_tests(folder: Path, mutation: Break) -> tuple[int, str]:
    """pytest's exit code and what it printed."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", mutation.tests]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'client'}",
        # Two texts of one size and second would share their bytecode.
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    answer = subprocess.run(
        [*command, "-k", mutation.names],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TESTS_S,
        check=False,
    )
    return answer.returncode, answer.stdout + answer.stderr


def noticed(folder: Path, mutation: Break) -> Outcome:
    """Makes the break, looks, and takes it back."""
    began = time.monotonic()
    path = folder / mutation.path
    text = path.read_text("utf-8") if path.exists() else ""
    if (count := text.count(mutation.text)) != 1:
        fault = f"text not there any more in {mutation.path}" if not count else f"{count} times"
        return Outcome(mutation, 0.0, fault=f"{fault}: {mutation.text.strip()!r}")
    code, said = run_tests(folder, mutation)
    if code != PASSED:
        fault = f"unbroken, the tests end with {code}: {_last_line(said)}"
        return Outcome(mutation, time.monotonic() - began, fault=fault)
    path.write_text(text.replace(mutation.text, mutation.instead), "utf-8")
    began = time.monotonic()
    code, said = run_tests(folder, mutation)
    seconds = time.monotonic() - began
    path.write_text(text, "utf-8")
    if code == PASSED:
        return Outcome(mutation, seconds, fault="not noticed")
    if code != FAILED:
        return Outcome(mutation, seconds, fault=f"the tests end with {code}: {_last_line(said)}")
    first = re.search(r"^(?:FAILED|ERROR) \S+::(\w+)", said, re.MULTILINE)
    return Outcome(mutation, seconds, test=first[1] if first else "")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing was said"])[-1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations")
    parser.add_argument("words", nargs="*", metavar="WORD", help="a part of what is broken")
    words: list[str] = parser.parse_args().words or [""]
    chosen = [one for one in BREAKS if any(word in one.what for word in words)]
    with tempfile.TemporaryDirectory(prefix="stablesr-mutations-") as name:
        folder = Path(name)
        copy(folder)
        outcomes = [noticed(folder, mutation) for mutation in chosen]
    table = Table(title="Deliberate breaks")
    for column in ("broken", "noticed by", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for one in outcomes:
        style = "bold red" if one.fault else None
        by = f"{one.mutation.tests}\n{one.test or 'NOT NOTICED'}"
        table.add_row(one.mutation.what, by, f"{one.seconds:.1f}", style=style)
    Console(width=130).print(table)
    for one in outcomes:
        if one.fault:
            print(f"{one.mutation.what}: {one.fault}")
    return 1 if any(one.fault for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
