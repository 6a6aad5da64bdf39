"""What is measured of a running service: waiting, many jobs at once, a large one beside small ones.

Each function returns its measurements and, as sentences, what is not as it should be.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.images import SCALE, Difference, pixels_of_file, synthetic_png
from benchmarks.results import Measurement, Unit, percentile
from benchmarks.stack import Stack, last_state
from stablesr_client import Event, Job

MAX_OVERHEAD_S = 0.1
MAX_LEVELS = 1
"""That a value may differ by where two calls have the same roundings, or nearly so."""
MAX_MEAN_LEVELS = 1.0
"""The same of the mean, where roundings differ."""

Report = tuple[list[Measurement], list[str]]


@dataclass(frozen=True)
class Workload:
    """Which jobs; sizes are sides of results in px."""

    variant: str
    preset: str
    jobs: int
    size: int
    steps: int
    large: int
    large_steps: int
    small: int
    late: int
    exact: bool
    """Whether calls of other tiles have the same roundings, as in float32"""

    def submit(self, stack: Stack, number: int, side: int, steps: int) -> Job:
        """Uploads image `number`, which is its seed too."""
        return stack.client.submit(
            synthetic_png(side // SCALE, number),
            scale=SCALE,
            steps=steps,
            seed=number,
            preset=self.preset,
            output_format="png",
        )

    def measurement(self, case: str, quantity: str, value: float, unit: Unit) -> Measurement:
        return Measurement(self.variant, case, quantity, value, unit)


def latency(stack: Stack, workload: Workload) -> Report:
    """Jobs of one step one after the other, each on an idle worker.

    A job's clock is its client's: it starts before the POST and stops when the stream of its
    events says that denoising begins, so opening that stream counts as well. What the model does in
    between is the stage `encode` of the job's timings. All the rest is overhead: upload, checks,
    storing, queue, the worker's waking up, reading the file, and the event's way back.
    """
    first_steps, encoding = [], []
    for number in range(workload.jobs):
        start = time.perf_counter()
        job = workload.submit(stack, number, workload.size, steps=1)
        first_step, last = time_of_first_step(stack.client.events(job), start)
        if last is None or not last.succeeded or last.timings is None:
            raise SystemExit(f"The job {job.id} did not succeed: {last and last.error}")
        first_steps.append(first_step)
        encoding.append(last.timings["encode"] or 0.0)
    overhead = [a - b for a, b in zip(first_steps, encoding, strict=True)]
    rows = {
        "POST to first step": first_steps,
        "of it the model": encoding,
        "of it overhead": overhead,
    }
    measurements = [
        workload.measurement(case, quantity, value, "s")
        for case, values in rows.items()
        for quantity, value in (
            ("median", statistics.median(values)),
            ("p95", percentile(values, 0.95)),
            ("most", max(values)),
        )
    ]
    middle = statistics.median(overhead)
    if middle < MAX_OVERHEAD_S:
        return measurements, []
    return measurements, [f"The overhead is {middle:.3f} s, but must be below {MAX_OVERHEAD_S} s."]


def time_of_first_step(events: Iterable[Event], start: float) -> tuple[float, Job | None]:
    """Seconds until an event says that encoding is over, and the job of the last event."""
    first_step, job = None, None
    for event in events:
        job = event.job
        stage = job.progress.stage if job.progress is not None else None
        if first_step is None and (stage in ("denoise", "decode", "save") or job.ended):
            first_step = time.perf_counter() - start
    return first_step or 0.0, job


def together(stack: Stack, workload: Workload) -> Report:
    """The same jobs twice: each submitted when the one before has ended, and all at once.

    The results of both rounds are compared: in float32 the same image may differ by one level
    where a value lies between two. In half precision a call of other tiles may be computed by other
    kernels, whose roundings go through every later step, so only the mean is judged.
    """
    numbers = range(workload.jobs)
    measurements, images, seconds = [], [], []
    for case, rounds in {
        "jobs one at a time": [[number] for number in numbers],
        "jobs together": [list(numbers)],
    }.items():
        start = time.perf_counter()
        last: list[Job] = []
        for one_round in rounds:
            jobs = [workload.submit(stack, n, workload.size, workload.steps) for n in one_round]
            last += last_state(stack.client, jobs)
        seconds.append(time.perf_counter() - start)
        totals = [(job.timings or {}).get("total") or 0.0 for job in last]
        measurements += [
            workload.measurement(case, "speed", len(last) / seconds[-1], "images/s"),
            workload.measurement(case, "a job, median", statistics.median(totals), "s"),
            workload.measurement(case, "p95", percentile(totals, 0.95), "s"),
        ]
        images.append([pixels_of_file(stack.result(job)) for job in last])
    difference = Difference.of(zip(*images, strict=True))
    measurements += [
        workload.measurement("jobs together", "as fast", seconds[0] / seconds[1], "times"),
        workload.measurement("jobs together", "differing by", difference.largest, "levels"),
        workload.measurement("jobs together", "in the mean", difference.mean, "levels"),
    ]
    return measurements, faults_of(difference, exact=workload.exact)


def faults_of(difference: Difference, *, exact: bool) -> list[str]:
    """What is wrong where the results of both rounds differ so."""
    value, most = difference.mean, MAX_MEAN_LEVELS
    if exact:
        value, most = difference.largest, MAX_LEVELS
    if value <= most:
        return []
    return [
        f"Results of jobs together differ from those one at a time by {value:g} levels "
        f"{'at most' if exact else 'in the mean'}, but must not by more than {most:g}."
    ]


def fairness(stack: Stack, workload: Workload) -> Report:
    """A large image and small ones behind it, and some more as soon as the large one is denoised.

    A small one alone goes before. No small one may end after the large one; seconds are the
    service's own timings.
    """
    seeds = iter(range(1_000_000))

    def submit(side: int, steps: int) -> Job:
        return workload.submit(stack, next(seeds), side, steps)

    def small() -> Job:
        return submit(workload.size, workload.steps)

    [alone] = last_state(stack.client, [small()])
    large = submit(workload.large, workload.large_steps)
    others = [small() for _ in range(workload.small)]
    if workload.late:
        for event in stack.client.events(large):
            progress = event.job.progress
            if event.job.ended or (progress is not None and progress.stage == "denoise"):
                break
        others += [small() for _ in range(workload.late)]
    large, *others = last_state(stack.client, [large, *others])
    first, late = others[: workload.small], others[workload.small :]
    cases = {
        "a small image alone": [alone],
        f"an image of {workload.large} px": [large],
        "small ones submitted behind it": first,
        "small ones submitted later": late,
    }
    measurements = []
    for case, jobs in cases.items():
        for timing, words in (("queue", "in the queue at most"), ("total", "in total at most")):
            seconds = [(job.timings or {}).get(timing) or 0.0 for job in jobs]
            if seconds:
                measurements.append(workload.measurement(case, words, max(seconds), "s"))
    behind = sum(ended_at(job) > ended_at(large) for job in others)
    if not behind:
        return measurements, []
    return measurements, [f"{behind} of {len(others)} small images ended after the large one."]


def ended_at(job: Job) -> float:
    """Seconds since the epoch."""
    assert job.ended_at is not None
    return job.ended_at.timestamp()
