"""A discrete-event simulation of workers that serve one preset.

Simulated are only arrivals and the time that things take. What is decided is decided by the code
that runs in production: who is next by the scripts of `jobs.fair_queue` in a real Redis, who is
refused by `JobQueue.check_room`, which tiles share a call by `worker.engine.fair_split`. Pods
follow the chart's rule as KEDA and Kubernetes' autoscaler apply it.

So many steps at a time are one event (`QUANTUM`), since jobs join and leave between two calls of a
few milliseconds; the mean waiting changes by half of that.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import simpy
from redis import Redis

from jobs.errors import QueueFull
from jobs.fair_queue import dispatch, push
from jobs.job_store import list_key, queue_key, record_key, waiting_key
from jobs.queue import JobQueue
from models.layout import Layout
from models.parameters import preset_parameters
from models.presets import get_preset
from tools.capacity.devices import SIZES, Device
from worker.engine import fair_split

QUANTUM = 10
CLIENTS = 200
# Of the horizontal pod autoscaler: how often it looks, what it adds in that time at most; the chart
# has how it lets pods go.
POLL_S, MOST_PODS, MOST_SHARE = 15.0, 4, 1.0
DOWN_S = 60.0
MOST_TIMES = 3

Process = Generator[simpy.Event, Any, None]


@dataclass(eq=False)
class Job:
    """An image on its way; times in seconds of the simulation."""

    name: str
    client: str
    side: int
    tiles: int
    steps: int
    arrived: float
    started: float = 0.0
    position: int = 0
    done: simpy.Event | None = None

    @property
    def area(self) -> float:
        """Of the canvas, in 512 x 512 pixels."""
        return (self.side * 4 / 512) ** 2


@dataclass
class Outcome:
    """What was seen after the warm-up."""

    waits: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    refusals: int = 0
    pods: list[tuple[float, int]] = field(default_factory=list)
    """Time, and how many there were from then on"""
    most_waiting: int = 0
    in_system: float = 0.0
    """Jobs that wait or run, mean"""


class Backlog:
    """Jobs that wait, in the order of a real Redis, which holds them."""

    def __init__(self, env: simpy.Environment, preset: str, redis: Redis, queue: JobQueue) -> None:
        self._env, self._preset, self._redis, self._queue = env, preset, redis, queue
        self._jobs: dict[str, Job] = {}
        self._idle: deque[simpy.Event] = deque()
        redis.delete(list_key(preset), queue_key(preset), f"stablesr:turns:{preset}")

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Raises QueueFull."""
        self._queue.check_room(self._preset, len(self))
        self._jobs[job.name] = job
        with self._redis.pipeline() as pipe:
            pipe.hset(record_key(job.name), "counted", job.client)
            pipe.zadd(waiting_key(job.client), {job.name: 0})
            push(pipe, self._preset, job.name)
            pipe.execute()
        if self._idle:
            self._idle.popleft().succeed(self._next())

    def get(self) -> simpy.Event:
        """Succeeds with the next job."""
        event = self._env.event()
        if self._jobs:
            event.succeed(self._next())
        else:
            self._idle.append(event)
        return event

    def leave(self, event: simpy.Event) -> bool:
        """Waits no longer; whether it did."""
        try:
            self._idle.remove(event)
        except ValueError:
            return False
        return True

    def _next(self) -> Job:
        raw: Any = self._redis.lpop(list_key(self._preset))
        job = self._jobs.pop(raw.decode())
        with self._redis.pipeline() as pipe:
            pipe.zrem(waiting_key(job.client), job.name)
            pipe.delete(record_key(job.name))
            pipe.execute()
        dispatch(self._redis, self._preset)
        return job


class Pod:
    """A worker: slots that take jobs, an engine that makes their calls, one device for all."""

    def __init__(self, simulation: Simulation) -> None:
        self._s, self._env = simulation, simulation.env
        self._device = simpy.Resource(self._env)
        self._pending: deque[Job] = deque()
        self._work = self._env.event()
        self._idle: list[simpy.Event] = []
        self.running, self.is_draining = 0, False
        self._env.process(self._start())

    def drain(self) -> None:
        """Takes no further job, and ends with its last."""
        self.is_draining = True
        for event in self._idle:
            if self._s.backlog.leave(event):
                event.succeed(None)

    def _start(self) -> Process:
        yield self._env.timeout(self._s.device.start_s)
        self._env.process(self._engine())
        for _ in range(self._s.device.slots):
            self._env.process(self._slot())

    def _slot(self) -> Process:
        device = self._s.device
        while not self.is_draining:
            event = self._s.backlog.get()
            self._idle.append(event)
            job: Job | None = yield event
            self._idle.remove(event)
            if job is None:
                return
            self.running, job.started = self.running + 1, self._env.now
            yield from self._use(device.encode_s * job.area)
            job.done = self._env.event()
            self._pending.append(job)
            if not self._work.triggered:
                self._work.succeed()
            yield job.done
            yield from self._use(device.decode_s * job.area)
            yield self._env.timeout(device.write_s * job.area)
            self.running -= 1
            self._s.note(job)

    def _use(self, seconds: float) -> Process:
        with self._device.request() as turn:
            yield turn
            yield self._env.timeout(seconds)

    def _engine(self) -> Process:
        device = self._s.device
        while True:
            if not self._pending:
                self._work = self._env.event()
                yield self._work
            first = self._pending[0]
            steps = min(QUANTUM, first.steps)
            shares = fair_split([j.tiles - j.position for j in self._pending], device.max_tiles)
            batch = [(self._pending.popleft(), share) for share in shares]
            yield from self._use(steps * device.call_s(sum(shares)))
            for job, share in batch:
                job.position += share
                if job.position == job.tiles:
                    job.position, job.steps = 0, job.steps - steps
                if job.steps > 0:
                    self._pending.append(job)
                else:
                    assert job.done is not None  # made before it was appended
                    job.done.succeed()


class Simulation:
    """Args:
    rate: images a second at a time.
    pods: at the start; they follow the chart's rule from then on, and are at most three times as
        many.
    stabilization_s: how long the demand must have been lower before a pod goes.
    """

    def __init__(
        self,
        device: Device,
        rate: Callable[[float], float],
        pods: int,
        stabilization_s: float,
        redis: Redis,
        queue: JobQueue,
        seed: int = 0,
    ) -> None:
        self.env, self.device, self.rate = simpy.Environment(), device, rate
        self.backlog = Backlog(self.env, device.preset, redis, queue)
        self.outcome = Outcome()
        # Refusals change no arrival.
        self._random, self._retries = random.Random(seed), random.Random(seed)
        self._stabilization_s = stabilization_s
        self._tiles = {side: tiles_of(side, device.preset) for side, _ in SIZES}
        self._steps = get_preset(device.preset).steps
        self._pods, self._most = [Pod(self) for _ in range(pods)], MOST_TIMES * pods
        self._warm_up = 0.0

    def run(self, seconds: float, warm_up: float) -> Outcome:
        """Simulates so many seconds after a warm-up."""
        self._warm_up = warm_up
        self.env.process(self._arrivals())
        self.env.process(self._autoscaler())
        self.env.run(warm_up + seconds)
        return self.outcome

    def note(self, job: Job) -> None:
        """A job has ended."""
        if job.arrived >= self._warm_up:
            self.outcome.waits.append(job.started - job.arrived)
            self.outcome.totals.append(self.env.now - job.arrived)

    def _arrivals(self) -> Process:
        draw, number = self._random, 0
        sides, shares = [side for side, _ in SIZES], [share for _, share in SIZES]
        while True:
            yield self.env.timeout(draw.expovariate(self.rate(self.env.now)))
            number += 1
            side = draw.choices(sides, shares)[0]
            # A few clients send most of the images.
            client = f"c{int(CLIENTS * draw.random() ** 3)}"
            tiles = self._tiles[side]
            job = Job(str(number), client, side, tiles, self._steps, self.env.now)
            self.env.process(self._submit(job))

    def _submit(self, job: Job) -> Process:
        while True:
            try:
                self.backlog.add(job)
            except QueueFull as full:
                self.outcome.refusals += self.env.now >= self._warm_up
                seconds: Any = full.extra["retry_after"]
                yield self.env.timeout(seconds * (1 + self._retries.random()))
            else:
                break

    def _autoscaler(self) -> Process:
        recent: deque[tuple[float, int]] = deque()
        went, samples = -DOWN_S, 0
        while True:
            now, slots = self.env.now, self.device.slots
            self._pods = [pod for pod in self._pods if pod.running or not pod.is_draining]
            live = [pod for pod in self._pods if not pod.is_draining]
            running = sum(pod.running for pod in self._pods)
            wanted = math.ceil((len(self.backlog) + running) / slots)
            wanted = min(self._most, max(1, wanted))
            recent.append((now, wanted))
            while recent[0][0] < now - self._stabilization_s:
                recent.popleft()
            if wanted > len(live):
                more = max(MOST_PODS, math.ceil(MOST_SHARE * len(live)))
                self._pods += [Pod(self) for _ in range(min(wanted - len(live), more))]
            elif max(count for _, count in recent) < len(live) and now - went >= DOWN_S:
                min(live, key=lambda pod: pod.running).drain()
                went = now
            if now >= self._warm_up:
                outcome, samples = self.outcome, samples + 1
                outcome.pods.append((now, len(self._pods)))
                outcome.most_waiting = max(outcome.most_waiting, len(self.backlog))
                outcome.in_system += (len(self.backlog) + running - outcome.in_system) / samples
            yield self.env.timeout(POLL_S)


def tiles_of(side: int, preset: str) -> int:
    """Of a square upload of so many pixels a side, enlarged four times."""
    return Layout.of((side, side), preset_parameters(get_preset(preset), scale=4)).tiles


def image_seconds(device: Device) -> float:
    """Seconds of the device that an image takes in calls that are full, and beside them; mean."""
    steps = get_preset(device.preset).steps
    call_s = device.call_s(device.max_tiles) / device.max_tiles
    parts = device.encode_s + device.decode_s
    return sum(
        share * (tiles_of(side, device.preset) * steps * call_s + parts * (side / 128) ** 2)
        for side, share in SIZES
    )
