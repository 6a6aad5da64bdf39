"""The command: `python -m tools.capacity --help`."""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from redis import Redis
from rich.console import Console
from rich.table import Table
from yaml import safe_load

from jobs.queue import JobQueue
from jobs.settings import Settings
from tools.capacity import measured
from tools.capacity.devices import DEVICES, SIZES, Device
from tools.capacity.limits import limits
from tools.capacity.server import redis_server
from tools.capacity.simulation import Outcome, Simulation, image_seconds

DAY_S, HOUR_S = 86_400.0, 3600.0
WARM_UP_S = 900.0
VALUES = Path(__file__).parents[2] / "charts/stablesr/values.yaml"


def curves(per_day: float) -> dict[str, tuple[Callable[[float], float], float, float]]:
    """By name: images a second at a time, the seconds that are simulated, and the highest rate."""
    mean = per_day / DAY_S

    def burst(now: float) -> float:
        return mean * (10 if 1200 <= now - WARM_UP_S < 1500 else 1)

    def diurnal(now: float) -> float:
        # From the mean up to the peak, down to the least and back.
        return mean * (1 + 0.8 * math.sin(2 * math.pi * (now - WARM_UP_S) / DAY_S))

    return {
        "steady": (lambda now: mean, HOUR_S, mean),
        "diurnal": (diurnal, DAY_S, 1.8 * mean),
        "burst": (burst, HOUR_S, 10 * mean),
    }


def simulate(
    device: Device, curve: str, per_day: float, hours: float | None, most_queued: int
) -> tuple[Outcome, float]:
    """What a curve does, and the seconds that were simulated."""
    rate, seconds, _ = curves(per_day)[curve]
    seconds = min(seconds, (hours or DAY_S) * HOUR_S)
    pods = math.ceil(1.1 * per_day / DAY_S * image_seconds(device))
    stabilization_s = safe_load(VALUES.read_text())["autoscaling"]["stabilizationSeconds"]
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_server(Path(folder)) as url,
        Redis.from_url(url) as redis,
    ):
        queue = JobQueue(Settings(redis_url=url, max_queued=most_queued), redis)
        simulation = Simulation(device, rate, pods, stabilization_s, redis, queue)
        return simulation.run(seconds, WARM_UP_S), seconds


def row(name: str, device: Device, curve: str, outcome: Outcome, seconds: float) -> list[str]:
    pods = [count for _, count in outcome.pods]
    mean, images = statistics.fmean(pods), len(outcome.waits)
    waits = np.percentile(outcome.waits, (50, 95, 99))
    busy = images / seconds * image_seconds(device) / mean
    usd = mean * device.usd_an_hour * seconds / HOUR_S / images * 1000
    return [
        name,
        curve,
        f"{images:,}",
        f"{mean:.1f}",
        str(max(pods)),
        f"{busy:.0%}",
        " / ".join(f"{wait:.0f}" for wait in waits),
        f"{statistics.median(outcome.totals):.0f}",
        f"{outcome.most_waiting:,}",
        f"{outcome.refusals:,}",
        f"{usd:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools.capacity",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--images-per-day", type=float, default=1_000_000)
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=list(DEVICES))
    parser.add_argument("--curves", nargs="+", choices=curves(1), default=list(curves(1)))
    parser.add_argument("--hours", type=float, help="the most that are simulated of a curve")
    parser.add_argument("--max-queued", type=int, default=20_000, help="STABLESR_MAX_QUEUED")
    parser.add_argument("--measure", action="store_true", help="the service, in place of that")
    parser.add_argument("--queued", type=int, default=20_000, help="jobs that wait, to measure")
    parser.add_argument("--pollers", type=int, default=500, help="clients that poll, to measure")
    arguments = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console.width = 150
    if arguments.measure:
        raise SystemExit(measured.main(console, arguments.queued, arguments.pollers))
    table = Table(title=f"{arguments.images_per_day:,.0f} images a day")
    names = ["device", "arrivals", "images", "pods", "most", "busy", "wait s, p50 / 95 / 99"]
    for name in [*names, "all s", "most waiting", "503s", "USD per 1,000"]:
        table.add_column(name, justify="left" if name in names[:2] else "right")
    ends: dict[str, list[tuple[float, Outcome]]] = {}
    for name in arguments.devices:
        for curve in arguments.curves:
            device = DEVICES[name]
            outcome, seconds = simulate(
                device, curve, arguments.images_per_day, arguments.hours, arguments.max_queued
            )
            table.add_row(*row(name, device, curve, outcome, seconds))
            highest = curves(arguments.images_per_day)[curve][2]
            ends.setdefault(curve, []).append((highest, outcome))
    console.print(table)
    console.print(limits(ends))
    console.print("Uploads: " + ", ".join(f"{share:.0%} of {s} x {s} px" for s, share in SIZES))
    for name in arguments.devices:
        device = DEVICES[name]
        console.print(f"{name}: {device.preset}, {device.usd_an_hour} USD an hour; {device.origin}")


if __name__ == "__main__":
    main()
