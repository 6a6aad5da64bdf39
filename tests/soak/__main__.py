"""Jobs of many clients, through kills and outages, to the end of their times to live.

    python -m tests.soak [--jobs 1000] [--minutes 20] [--seed N] [--clients 8]

Redis, the service and two workers are real processes; only the network is a double. Every job must
end once, as it was asked to, with the right bytes, and nothing must stay of it. Ends with 1 when
anything else happened. Fewer than 200 jobs have shorter times to live.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from jobs.connection import connect
from tests.faults.house import House, until
from tests.soak import leftovers
from tests.soak.chaos import Chaos
from tests.soak.clients import Customer, Tally
from tests.soak.pace import FEW_JOBS, LONG, SHORT, Pace
from tests.soak.watch import JUDGED_S, MOST_GROWTH_MB, Life, Watch

ENDS = ("succeeded", "canceled", "failed")
# Until an image without a job is removed.
GRACE_S = 15.0
MOST_SHOWN = 40


@dataclass
class Outcome:
    """What became of the soak; `faults` are sentences, none when all is well."""

    seconds: float = 0.0
    rows: list[tuple[str, str]] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def soak(house: House, scratch: Path, pace: Pace, chosen: argparse.Namespace) -> Outcome:
    """All of it, in a house that is open."""
    began = time.monotonic()
    tally = Tally(chosen.jobs, began + 60 * chosen.minutes)

    def note(fault: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s {tally.ended:5} ended  {fault}", flush=True)

    chaos = Chaos(
        house,
        chosen.seed,
        pauses_s=pace.chaos_pauses_s,
        away_s=pace.away_s,
        note=note,
        without=chosen.without,
    )
    house.ready()
    watch = Watch(
        {
            "service": lambda: house.service_pid,
            "worker that lives": lambda: chaos.steady.pid,
            "worker that is killed": lambda: chaos.victim.pid,
        }
    )
    threads = [
        threading.Thread(target=Customer(name, house, chosen.seed, tally, pace).run)
        for name in range(chosen.clients)
    ]
    for thread in (*threads, watch, chaos):
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if pace.memory_is_judged and len(tally.ends) > chosen.jobs / 2:
            chaos.spares_service.set()
        time.sleep(0.2)
    chaos.leaving.set()
    chaos.join()
    watch.leaving.set()
    outcome = Outcome(time.monotonic() - began, lives=watch.lives())
    outcome.faults += tally.faults
    outcome.faults += [chaos.fault] if chaos.fault else []
    outcome.faults += [life.fault for life in outcome.lives if life.fault]
    ends = Counter(tally.ends.values())
    outcome.rows = [
        ("jobs submitted", str(len(tally.ends))),
        *((state, str(ends[state])) for state in ENDS),
        *((what, str(count)) for what, count in sorted(tally.counts.items())),
        *((what, str(count)) for what, count in sorted(chaos.counts.items())),
    ]
    outcome.faults += ended_once(house, tally)
    see_what_is_left(house, scratch, chaos, outcome)
    return outcome


def ended_once(house: House, tally: Tally) -> list[str]:
    """What says that a job ended more than once, or that there are jobs no client knows."""
    faults = [f"job {id}: no client saw its end" for id, s in tally.ends.items() if s not in ENDS]
    logs = [worker.log for worker in house.workers if worker.log.exists()]
    lines = [line for log in logs for line in log.read_text().splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    done = Counter(event["job"] for event in events if event.get("event") == "job done")
    faults += [f"job {job}: done {count} times" for job, count in done.items() if count > 1]
    with connect(house.settings) as connection:
        moves = leftovers.moves(connection)
    ends = Counter(tally.ends.values())
    for state in ENDS:
        if moves[state] != ends[state]:
            faults.append(f"{moves[state]} jobs became {state}, clients know of {ends[state]}")
    return faults


def see_what_is_left(house: House, scratch: Path, chaos: Chaos, outcome: Outcome) -> None:
    """Waits for the times to live; ends workers and service in order, and looks."""
    settings = house.settings
    with connect(settings) as connection:
        seconds = settings.result_ttl_s + 4 * settings.maintenance_s + 2 * GRACE_S
        put_off = leftovers.wait_for_sweeps(connection, settings, seconds)
        outcome.rows.append(("sweeps put off", str(put_off)))
        outcome.faults += [f"blob {name} is left" for name in leftovers.blobs(settings)]
        # A look at the workers forgets those that are silent.
        house.client.get("/readyz")
        for worker in (chaos.steady, chaos.victim):
            chaos.works(worker)
            worker.signal(signal.SIGTERM)
            if (code := worker.wait(20)) != 0:
                outcome.faults.append(f"a worker ended with {code}, not 0")
        os.kill(house.service_pid, signal.SIGTERM)
        until(house.service_died, "the service ends", seconds=20)
        kinds, wrong = leftovers.keys(connection)
        outcome.faults += wrong
        outcome.rows += [(f"keys {kind}", str(count)) for kind, count in sorted(kinds.items())]
    outcome.faults += [f"{name} is left in TMPDIR" for name in leftovers.scratch(scratch)]


def tables(outcome: Outcome) -> list[Table]:
    made = Table(title=f"Soak, {outcome.seconds:.0f} s", min_width=50)
    made.add_column("what")
    made.add_column("count", justify="right")
    for what, count in outcome.rows:
        made.add_row(what, count)
    memory = Table(title=f"The longest life; judged from {JUDGED_S:g} s on")
    memory.add_column("process")
    for name in ("seconds", "MB at first", "at last", "files at first", "at last"):
        memory.add_column(name, justify="right")
    for life in outcome.lives:
        figures = [f"{mb:.1f}" for mb in life.memory_mb] + [f"{n:g}" for n in life.descriptors]
        style = "bold red" if life.fault else None
        memory.add_row(life.role, f"{life.seconds:.0f}", *figures, style=style)
    memory.caption = f"Medians of its first and last quarter; {MOST_GROWTH_MB:g} MB may come."
    return [made, memory]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=20.0, help="no job is submitted later")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--without", action="append", default=[], help="a fault that is left out")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}")
    torch.set_num_threads(1)
    pace = SHORT if chosen.jobs < FEW_JOBS else LONG
    settings: dict[str, Any] = {
        "result_ttl_s": pace.result_ttl_s,
        "worker_ttl_s": pace.worker_ttl_s,
    }
    house = House("soak", upload_grace_s=GRACE_S, **settings)
    scratch = house.folder / "tmp"
    scratch.mkdir()
    # Of the processes, not of this one, whose own folder is chosen by now.
    os.environ["TMPDIR"] = str(scratch)
    with house:
        outcome = soak(house, scratch, pace, chosen)
    console = Console(width=100)
    for table in tables(outcome):
        console.print(table)
    for fault in outcome.faults[:MOST_SHOWN]:
        print(fault)
    if outcome.faults:
        (house.folder / "faults.txt").write_text("\n".join(outcome.faults) + "\n")
        print(f"{len(outcome.faults)} faults with seed {chosen.seed}; logs are in {house.folder}")
        return 1
    shutil.rmtree(house.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
