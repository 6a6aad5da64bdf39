"""Runs the kinds, some at a time, and prints a table.

    python -m tests.redis_kinds [NAME ...] [--together N] [--servers FOLDER]

Ends with 1 when a kind went otherwise than it must, or could not be had here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.redis_kinds.kinds import KINDS
from tests.redis_kinds.servers import NoServer, Programs

Row = tuple[str, str, float]


def run(name: str, programs: Programs) -> Row:
    start = time.monotonic()
    try:
        said = KINDS[name](programs)
    except NoServer as reason:
        said = f"not run: {reason}"
    # Whatever goes wrong with one kind is its row in the table.
    except Exception as error:
        said = (
            f"wrong: {', '.join(getattr(error, '__notes__', ()))} {type(error).__name__}: {error}"
        )
        traceback.print_exc()
    return name, said, time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.redis_kinds")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part of a kind's name")
    parser.add_argument("--together", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--servers", type=Path, help="a folder that keeps the servers of Debian")
    chosen = parser.parse_args()
    parts: list[str] = chosen.names or [""]
    names = [name for name in KINDS if any(part in name for part in parts)]
    with tempfile.TemporaryDirectory(prefix="stablesr-redis-kinds-") as scratch:
        folder = (chosen.servers or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        programs = Programs(folder)
        with ThreadPoolExecutor(chosen.together) as pool:
            rows = list(pool.map(lambda name: run(name, programs), names))
    table = Table("kind", "what it does", "seconds", title="Kinds of Redis")
    for name, said, seconds in rows:
        is_well = said.startswith(("right", "refused"))
        table.add_row(name, said, f"{seconds:.0f}", style=None if is_well else "bold red")
    Console(width=120).print(table)
    return 0 if all(said.startswith(("right", "refused")) for _, said, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
