"""Runs the faults, several at a time since most of their time is waiting, and prints a table.

    python -m tests.faults [NAME ...] [--store s3] [--redis sentinel] [--times N] [--together N]
        [--json FILE]

Ends with 1 when a job was lost, ended twice or ended otherwise than it must, and when a fault could
not be made here: what was not tried did not go well.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.cases import CASES, FOLDER_ONLY, Case, NotRun
from tests.faults.failover import on_a_group
from tests.faults.house import House
from tests.redis_sentinel import RedisGroup
from tests.redis_server import RedisServer


@dataclass(frozen=True)
class Outcome:
    fault: str
    jobs: int
    right: int
    lost: int
    duplicated: int
    recovered_s: float | None
    """Until the service did again what the fault had stopped."""
    seconds: float
    """The whole case."""
    wrong: str = ""
    not_run: str = ""

    @property
    def well(self) -> bool:
        ended = (self.right, self.lost, self.duplicated) == (self.jobs, 0, 0)
        return ended and not self.wrong and not self.not_run


def run(case: Case, *, store: str, on_sentinel: bool = False) -> Outcome:
    began = time.monotonic()
    recovered, wrong, not_run = None, "", ""
    redis = RedisGroup(acknowledged=1) if on_sentinel else RedisServer()
    with House(case.name, redis, **{"store": store, **case.settings}) as house:
        try:
            recovered = case.run(house)
        except NotRun as reason:
            not_run = str(reason)
        # Whatever goes wrong in one case is its row in the table.
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        seconds = time.monotonic() - began
        lost = house.lost()
        outcome = Outcome(
            fault=case.name,
            jobs=len(house.jobs),
            right=house.right() if not lost else 0,
            lost=lost,
            duplicated=house.duplicated(),
            recovered_s=recovered,
            seconds=seconds,
            wrong=wrong,
            not_run=not_run,
        )
    if outcome.well:
        shutil.rmtree(house.folder)
    else:
        print(f"{case.name}: logs are in {house.folder}", file=sys.stderr)
    return outcome


def table(outcomes: list[Outcome]) -> Table:
    made = Table(title="Faults")
    made.add_column("fault")
    for name in ("jobs in", "ended right", "lost", "duplicated", "recovered, s", "seconds"):
        made.add_column(name, justify="right")
    for o in outcomes:
        recovered = "" if o.recovered_s is None else f"{o.recovered_s:.1f}"
        numbers = [str(n) for n in (o.jobs, o.right, o.lost, o.duplicated)]
        style = None if o.well else "bold red"
        made.add_row(o.fault, *numbers, recovered, f"{o.seconds:.1f}", style=style)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part of a fault's name")
    parser.add_argument("--store", choices=["folder", "s3"], default="folder")
    parser.add_argument("--times", type=int, default=1, help="how often each is done")
    parser.add_argument("--together", type=int, default=5, help="how many at a time")
    parser.add_argument("--json", type=Path, help="write the outcomes there as well")
    parser.add_argument("--redis", choices=("single", "sentinel"), default="single")
    chosen = parser.parse_args()
    names: list[str] = chosen.names or [""]
    known = CASES if chosen.redis == "single" else on_a_group(CASES)
    known = [case for case in known if chosen.store == "folder" or case.name not in FOLDER_ONLY]
    cases = [case for case in known if any(name in case.name for name in names)] * chosen.times
    with ThreadPoolExecutor(chosen.together) as pool:
        start = partial(run, store=chosen.store, on_sentinel=chosen.redis == "sentinel")
        outcomes = list(pool.map(start, cases))
    Console(width=110).print(table(outcomes))
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=2) + "\n")
    for outcome in outcomes:
        if outcome.wrong or outcome.not_run:
            print(f"{outcome.fault}: {outcome.wrong or 'not run, ' + outcome.not_run}")
    return 0 if all(outcome.well for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
