"""The service as its users have it: its start, waiting, many jobs, fairness, memory.

    python -m benchmarks.service
    python -m benchmarks.service --preset stablesr-512 --steps 20 --jobs 16 --slots 16
    STABLESR_DTYPE=bfloat16 python -m benchmarks.service --compare STABLESR_COMPILE=on
    python -m benchmarks.service --parts start latency --compare ../other-checkout

`stablesr up` starts Redis, the service and one worker, with the settings of this environment but
without limits for clients; images go through HTTP. The parts, in this order:

    start      seconds from `stablesr up` to ready, and to the first result; in the end once more
               with what the first start has kept on disk
    latency    from the POST to the first step, on an idle worker
    together   images per second of many jobs at once against one by one, and the same pixels
    fairness   a large image with small ones behind it: does one of them wait for its end?
    requests   processor time of the service a request, beside a bare FastAPI route
    memory     most resident memory of the service's and the worker's processes

`--compare` starts another build (the folder of a checkout) or this one with another setting
(NAME=VALUE) before; ratios are to the first. When something is not as it should be (overhead of
100 ms or more, pixels that differ, a small image that ended after the large one) the exit status
is 1.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.images import SCALE
from benchmarks.model import add_model, model_of
from benchmarks.report import command_parser, publish
from benchmarks.requests import requests
from benchmarks.results import Measurement, Result
from benchmarks.stack import Stack, last_state, write_random_weights
from benchmarks.workloads import Report, Workload, fairness, latency, together
from models.presets import get_preset

PARTS = ("start", "latency", "together", "fairness", "requests", "memory")
RUNS = {"latency": latency, "together": together, "fairness": fairness, "requests": requests}


@dataclass(frozen=True)
class Variant:
    """A build with settings."""

    name: str
    settings: Mapping[str, str]
    checkout: Path | None = None


def variant_of(name: str) -> Variant:
    """What `--compare NAME` starts.

    Raises:
        ValueError: it is neither a folder nor a setting.
    """
    path = Path(name)
    if path.is_dir():
        return Variant(path.resolve().name, {}, path)
    setting, equals, value = name.partition("=")
    if not equals or not setting.startswith("STABLESR_"):
        raise ValueError(
            f"--compare must be the folder of a checkout or STABLESR_NAME=VALUE, but is {name}."
        )
    return Variant(name, {setting: value})


def measure(
    variant: Variant, workload: Workload, settings: Mapping[str, str], parts: list[str]
) -> Report:
    """All parts of one variant, from an empty data folder on."""
    measurements: list[Measurement] = []
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="stablesr-service-") as folder:
        data = Path(folder)
        # Otherwise a run would use another one's compiled calls.
        values = {"XDG_STATE_HOME": str(data), **settings, **variant.settings}
        with Stack(data, values, variant.checkout) as stack:
            first = seconds_of_first_result(stack, workload)
            if "start" in parts:
                measurements += [
                    workload.measurement("start", "to ready", stack.ready_s, "s"),
                    workload.measurement("start", "to the first result", first, "s"),
                ]
            for part, run in RUNS.items():
                if part in parts:
                    print(f"{variant.name or 'this build'}: {part}", file=sys.stderr, flush=True)
                    more, wrong = run(stack, workload)
                    measurements += more
                    faults += wrong
            if "memory" in parts:
                for name, process in (("service", "serve"), ("worker", "worker")):
                    size = stack.peak_memory(process)
                    measurements.append(workload.measurement("peak memory", name, size, "bytes"))
        if "start" in parts:
            with Stack(data, values, variant.checkout) as stack:
                seconds = stack.ready_s
            measurements.append(workload.measurement("start again", "to ready", seconds, "s"))
    return measurements, faults


def seconds_of_first_result(stack: Stack, workload: Workload) -> float:
    """From the start of the command; the worker's first job takes longer than any other."""
    start = time.perf_counter()
    last_state(stack.client, [workload.submit(stack, 0, workload.size, 1)])
    return stack.ready_s + time.perf_counter() - start


def main() -> int:
    parser = command_parser(__doc__)
    add_model(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--compare", action="append", default=[], help="a checkout, or NAME=VALUE")
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="side of the results, px")
    parser.add_argument("--steps", type=int, help="the preset's")
    parser.add_argument("--slots", type=int, default=4, help="jobs that run together")
    parser.add_argument("--large", type=int, default=4096, help="side of the large result, px")
    parser.add_argument("--large-steps", type=int, default=2)
    parser.add_argument("--small", type=int, default=10, help="images behind the large one")
    parser.add_argument("--late", type=int, default=2, help="more of them, later")
    a = parser.parse_args()
    model = model_of(parser, a)
    if min(a.jobs, a.small + a.late) < 1 or a.size % SCALE or a.large % SCALE:
        parser.error(f"there must be a job and a small image, and sides be multiples of {SCALE}.")
    try:
        variants = [variant_of(name) for name in a.compare]
    except ValueError as error:
        parser.error(str(error))
    variants.append(Variant("this build" if variants else "", {}))
    steps = a.steps or get_preset(model.preset).steps
    sizes = (a.jobs, a.size, steps, a.large, a.large_steps, a.small, a.late)
    dtype = os.environ.get("STABLESR_DTYPE", "auto")
    exact = dtype == "float32" or (dtype == "auto" and model.device == "cpu")
    workload = Workload("", model.preset, *sizes, exact=exact)
    settings = {
        "STABLESR_PRESET": model.preset,
        "STABLESR_DEVICE": model.device,
        "STABLESR_SLOTS": str(a.slots),
        "OMP_NUM_THREADS": str(model.threads),
    }
    measurements: list[Measurement] = []
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="stablesr-weights-") as root:
        if model.weights == "random":
            write_random_weights(Path(root), model.preset)
            settings["STABLESR_WEIGHTS"] = root
        for variant in variants:
            of_variant = replace(workload, variant=variant.name)
            more, wrong = measure(variant, of_variant, settings, a.parts)
            measurements += more
            faults = wrong
    subject = (
        f"{model.preset}, {a.jobs} jobs of {a.size} px, {steps} step(s), {a.slots} slots, "
        "through HTTP"
    )
    publish(Result.of("benchmarks.service", subject, model.device, measurements), a.json)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
