"""The clients: they submit through the client library, cancel some jobs, and judge every end."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from stablesr_client import Client
from stablesr_client.errors import ClientError, JobFailed
from stablesr_client.schema import Job
from tests.faults.house import House
from tests.soak.pace import Pace
from tests.soak.requests import Request, expected_result, request

CANCELS = 0.2
ENDS_OF_CANCELS = ("canceled", "expired")
REPEATS = 0.05
LOST_UPLOADS = 0.04
LOST_ANSWERS = 0.01


@dataclass
class Tally:
    """What all clients saw; a fault is a sentence with the job's id."""

    jobs: int
    deadline: float
    ends: dict[str, str] = field(default_factory=dict)
    """id -> the state it ended in"""
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def ended(self) -> int:
        """Jobs whose end was seen."""
        with self.lock:
            return sum(state != "unknown" for state in self.ends.values())

    def numbers(self, count: int) -> list[int]:
        """The next numbers of jobs, none once all are given out or the time is over."""
        with self.lock:
            if time.monotonic() > self.deadline:
                return []
            some = list(itertools.islice(self._numbers, count))
            return [number for number in some if number < self.jobs]

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)


class BadLine(httpx.BaseTransport):
    """Connections that break: of some requests the server answers and the answer is lost."""

    def __init__(self, rng: random.Random, tally: Tally) -> None:
        self._rng, self._tally = rng, tally
        self._good = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._good.handle_request(request)
        share = LOST_UPLOADS if request.method == "POST" else LOST_ANSWERS
        if self._rng.random() < share:
            response.close()
            self._tally.count("answers lost")
            raise httpx.ReadError("the line broke before the answer")
        return response

    def close(self) -> None:
        self._good.close()


@dataclass
class Order:
    """A request that became a job, and what was answered when its cancel was asked."""

    request: Request
    job: Job
    cancel_asked: bool = False
    cancel_answer: Job | None = None

    @property
    def is_right(self) -> bool:
        """Whether the job may end as it did."""
        answer = self.cancel_answer
        if answer is not None and answer.ended and answer.state != self.job.state:
            return False
        # One that ended in the moment of its cancel loses its result.
        return self.job.state in ("succeeded", *(ENDS_OF_CANCELS if self.cancel_asked else ()))


class Customer:
    """One client, with its own connection, that has some jobs in hand at a time."""

    def __init__(self, name: int, house: House, seed: int, tally: Tally, pace: Pace) -> None:
        self._rng = random.Random(seed * 101 + name)
        self._seed, self._tally, self._pace = seed, tally, pace
        self._target = house.folder / f"client-{name}"
        line = BadLine(random.Random(seed * 103 + name), tally)
        self._client = Client(str(house.client.base_url), transport=line)
        # A client that was never answered does not take a server for one that is away.
        self._client.models()

    def run(self) -> None:
        """Until there is nothing more to submit; every job in hand has ended then."""
        with self._client:
            while numbers := self._tally.numbers(self._rng.randint(1, self._pace.jobs_at_once)):
                orders: list[Order] = []
                for number in numbers:
                    with self._judged(f"request {number}"):
                        orders.append(self._submit(request(number, self._seed)))
                for step in (self._cancel, self._see_to_the_end, self._look_again):
                    for order in orders:
                        with self._judged(f"job {order.job.id}"):
                            step(order)
                time.sleep(self._rng.uniform(0, 2 * self._pace.client_pause_s))

    @contextmanager
    def _judged(self, what: str) -> Iterator[None]:
        """What a client is not to meet is a fault, and no reason to stop."""
        try:
            yield
        except (ClientError, AssertionError, OSError) as error:
            self._tally.fault(f"{what}: {type(error).__name__}: {error}")

    def _submit(self, request: Request) -> Order:
        key = f"soak-{self._seed}-{request.number}"
        job = self._client.submit(request.image, idempotency_key=key, **request.parameters)
        with self._tally.lock:
            known = job.id in self._tally.ends
            self._tally.ends[job.id] = "unknown"
        assert not known, "another request was answered with this job"
        if self._rng.random() < REPEATS:
            again = self._client.submit(request.image, idempotency_key=key, **request.parameters)
            self._tally.count("repeated requests")
            assert again.id == job.id, f"the same request made job {again.id} as well as {job.id}"
        return Order(request, job)

    def _cancel(self, order: Order) -> None:
        if self._rng.random() < CANCELS:
            time.sleep(self._rng.uniform(0, 0.3))
            order.cancel_asked = True
            order.cancel_answer = self._client.cancel(order.job)

    def _see_to_the_end(self, order: Order) -> None:
        try:
            if self._rng.random() < 0.5:
                order.job = self._client.wait(order.job)
            else:
                for event in self._client.events(order.job):
                    order.job = event.job
        except JobFailed as end:
            order.job = end.job
        job = order.job
        with self._tally.lock:
            self._tally.ends[job.id] = "succeeded" if job.state == "expired" else job.state
            self._tally.counts["second attempts"] += job.attempt == 2
        assert order.is_right, f"it ended as {job.state} ({job.error}), attempt {job.attempt}"
        if job.succeeded:
            self._client.download(job, self._target)
            content = self._target.read_bytes()
            expected = expected_result(order.request)
            assert content == expected, (
                f"its result has other bytes ({len(content)}) than it must ({len(expected)})"
            )
            self._tally.count("right results")

    def _look_again(self, order: Order) -> None:
        """An end is final, but that a result expires."""
        was, state = order.job.state, self._client.get(order.job).state
        assert (was, state) in ((was, was), ("succeeded", "expired")), (
            f"it was {was} and is {state}"
        )
