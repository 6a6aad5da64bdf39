from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.checkpoints.files import preset_folder
from models.pipeline import StableSR
from models.presets import get_preset
from models.sampling import Sampler, Step, StepRequest
from tests.models import narrow
from tests.models.driving import drive, latent_of
from worker.attempt import Cancellation
from worker.engine import Engine, EngineBroken, fair_split

Predict = Callable[[StepRequest], Tensor]

PATIENCE_S = 60.0


def alone(sampler: Sampler) -> Tensor:
    """What a plain loop makes of a sampler."""
    return drive(sampler, lambda step: network(step.part(0, len(step))))


def network(request: StepRequest) -> Tensor:
    """Stands in for the UNet: depends on every input of a tile, and on nothing else."""
    assert request.context is not None  # every sampler here has one
    context = request.context.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)
    return torch.sin(request.noisy * (request.timestep + 1) + request.lr) + context


class Model:
    """A model that keeps its requests, and may be told to fail."""

    def __init__(self, predict: Predict = network) -> None:
        self.batches: list[list[StepRequest]] = []
        self._predict = predict

    def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        self.batches.append(list(requests))
        return [self._predict(request) for request in requests]

    @property
    def tiles(self) -> list[int]:
        """Tiles of each call so far."""
        return [sum(len(request) for request in batch) for batch in self.batches]


def sampler(seed: int, *, tiles: int = 2, steps: int = 5, side: int = 8) -> Sampler:
    """A job: a canvas that follows its predictions, as a scheduler's step does."""
    noise = torch.Generator().manual_seed(seed)
    canvas = torch.randn(tiles, 4, side, side, generator=noise)
    lr = torch.randn(tiles, 4, side, side, generator=noise)
    context = torch.randn(tiles, 3, 16, generator=noise)
    for step in range(steps):
        predictions = yield StepRequest(canvas, lr, 999 - 7 * step - seed, context, step, steps)
        canvas = 0.9 * canvas + 0.1 * torch.stack(list(predictions))
    return canvas


@contextmanager
def running(model: Model, *, max_tiles: int = 8) -> Iterator[Engine]:
    engine = Engine(model.predict, max_tiles=max_tiles)
    engine.thread.start()
    try:
        yield engine
    finally:
        engine.stop()


def run_together(engine: Engine, samplers: Sequence[Sampler]) -> list[Tensor]:
    with ThreadPoolExecutor(len(samplers)) as pool:
        return list(pool.map(engine.run, samplers))


def test_a_job_alone_gives_what_a_plain_loop_gives() -> None:
    with running(Model()) as engine:
        assert torch.equal(engine.run(sampler(1)), alone(sampler(1)))


def test_jobs_at_different_timesteps_in_one_batch_give_what_they_give_alone() -> None:
    jobs = [(seed, 1 + seed % 3, 3 + seed) for seed in range(6)]
    model = Model()
    with running(model) as engine:
        together = run_together(engine, [sampler(s, tiles=t, steps=n) for s, t, n in jobs])
    for (seed, tiles, steps), latent in zip(jobs, together, strict=True):
        assert torch.equal(latent, alone(sampler(seed, tiles=tiles, steps=steps)))
    mixed = [batch for batch in model.batches if len({r.timestep for r in batch}) > 1]
    assert mixed, "no call held tiles of two timesteps"


def test_two_jobs_share_their_calls_instead_of_taking_turns() -> None:
    both_asked = threading.Barrier(2, timeout=PATIENCE_S)

    def at_first_wait(step: Step) -> None:
        if step.step == 0:
            both_asked.wait()

    def slowly(request: StepRequest) -> Tensor:
        # As long as a small network takes, so that there is something to share.
        threading.Event().wait(0.1)
        return network(request)

    model = Model(slowly)
    with running(model) as engine, ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(engine.run, sampler(seed, steps=10), on_step=at_first_wait)
            for seed in (1, 2)
        ]
        for job in jobs:
            job.result(timeout=PATIENCE_S)
    shared = sum(len(batch) == 2 for batch in model.batches)
    assert shared >= 7, f"{shared} of 10 steps were made together"


def test_no_call_holds_more_tiles_than_allowed_and_a_large_step_is_split() -> None:
    model = Model()
    with running(model, max_tiles=4) as engine:
        latent = engine.run(sampler(3, tiles=11, steps=2))
    assert torch.equal(latent, alone(sampler(3, tiles=11, steps=2)))
    assert model.tiles == [4, 4, 3, 4, 4, 3]


@pytest.mark.parametrize(
    ("demands", "room", "counts"),
    [
        ([5], 8, [5]),
        ([100], 8, [8]),
        ([100, 1], 8, [7, 1]),
        ([1, 100, 100], 8, [1, 5, 2]),
        ([2, 2, 2], 4, [2, 1, 1]),
        ([100, 100, 100], 2, [1, 1]),
        ([1] * 10, 8, [1] * 8),
        ([], 8, []),
    ],
)
def test_a_call_has_room_for_every_step_that_waits(
    demands: list[int], room: int, counts: list[int]
) -> None:
    assert fair_split(demands, room) == counts


def test_a_small_job_waits_one_call_and_not_a_whole_step_of_a_large_one() -> None:
    arrived, release = threading.Event(), threading.Event()

    def predict(request: StepRequest) -> Tensor:
        if not arrived.is_set():
            arrived.set()
            release.wait(PATIENCE_S)
        return network(request)

    model = Model(predict)
    with running(model, max_tiles=4) as engine, ThreadPoolExecutor(2) as pool:
        large = pool.submit(engine.run, sampler(1, tiles=40, steps=1))
        assert arrived.wait(PATIENCE_S)
        small = pool.submit(engine.run, sampler(2, tiles=1, steps=1))
        while len(engine._waiting) < 2:
            threading.Event().wait(0.001)
        release.set()
        small.result(timeout=PATIENCE_S)
        large.result(timeout=PATIENCE_S)
    order = [tuple(len(request) for request in batch) for batch in model.batches]
    assert order[:2] == [(4,), (3, 1)]


def test_only_the_guilty_job_fails_when_a_shared_call_fails() -> None:
    def predict(request: StepRequest) -> Tensor:
        if request.steps == 13:
            raise ValueError("a tile that cannot be predicted")
        return network(request)

    with running(Model(predict)) as engine, ThreadPoolExecutor(3) as pool:
        guilty = pool.submit(engine.run, sampler(1, steps=13))
        others = [pool.submit(engine.run, sampler(seed, steps=6)) for seed in (2, 3)]
        with pytest.raises(ValueError, match="cannot be predicted"):
            guilty.result(timeout=PATIENCE_S)
        for seed, other in zip((2, 3), others, strict=True):
            assert torch.equal(other.result(timeout=PATIENCE_S), alone(sampler(seed, steps=6)))


def test_a_failed_shared_call_is_repeated_job_by_job() -> None:
    asked = threading.Barrier(2, timeout=PATIENCE_S)

    class Failing(Model):
        failures = 0

        def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
            if len(requests) > 1:
                self.failures += 1
                raise RuntimeError("together only")
            return super().predict(requests)

    model = Failing()
    with running(model) as engine, ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(engine.run, sampler(s, steps=9), on_step=lambda r: _meet(asked, r))
            for s in (1, 2)
        ]
        latents = [job.result(timeout=PATIENCE_S) for job in jobs]
    assert torch.equal(latents[0], alone(sampler(1, steps=9)))
    assert torch.equal(latents[1], alone(sampler(2, steps=9)))
    assert model.failures >= 1


def _meet(barrier: threading.Barrier, step: Step) -> None:
    barrier.wait()


def test_what_a_failed_call_computed_is_freed_before_its_tiles_are_asked_for_again() -> None:
    computed: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    arrived, release = threading.Event(), threading.Event()

    class OneTile(Model):
        """Has memory for one tile, if nothing else is held."""

        def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
            alive.append(sum(tensor() is not None for tensor in computed))
            activations = requests[0].noisy + 1
            computed.append(weakref.ref(activations))
            if not arrived.is_set():
                arrived.set()
                release.wait(PATIENCE_S)
            if len(requests) > 1:
                try:
                    raise ValueError("what the library said first")
                except ValueError as error:
                    raise torch.OutOfMemoryError("no memory for that many tiles") from error
            return super().predict(requests)

    with running(OneTile()) as engine, ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(engine.run, sampler(1, tiles=1, steps=1))]
        assert arrived.wait(PATIENCE_S)
        jobs += [pool.submit(engine.run, sampler(seed, tiles=1, steps=1)) for seed in (2, 3)]
        while len(engine._waiting) < 2:
            threading.Event().wait(0.001)
        release.set()
        for seed, job in zip((1, 2, 3), jobs, strict=True):
            assert torch.equal(
                job.result(timeout=PATIENCE_S), alone(sampler(seed, tiles=1, steps=1))
            )
    assert alive == [0, 0, 0, 0]


def test_a_single_tile_that_does_not_fit_fails_its_job() -> None:
    def predict(request: StepRequest) -> Tensor:
        raise torch.OutOfMemoryError("no memory at all")

    with running(Model(predict)) as engine, pytest.raises(torch.OutOfMemoryError):
        engine.run(sampler(5, tiles=3))


def test_what_on_step_raises_closes_the_sampler_before_the_next_step() -> None:
    closed: list[int] = []

    def watched() -> Sampler:
        step = 0
        try:
            inner = sampler(1, steps=50)
            request = next(inner)
            while True:
                step = request.step
                request = inner.send((yield request))
        finally:
            closed.append(step)

    def cancel(step: Step) -> None:
        if step.step == 3:
            raise Cancellation

    model = Model()
    with running(model) as engine:
        with pytest.raises(Cancellation):
            engine.run(watched(), on_step=cancel)
        assert torch.equal(engine.run(sampler(2)), alone(sampler(2)))
    assert closed == [3]


def test_a_job_that_waits_for_its_predictions_can_be_stopped() -> None:
    arrived, release = threading.Event(), threading.Event()

    def hang(request: StepRequest) -> Tensor:
        arrived.set()
        release.wait(PATIENCE_S)
        return network(request)

    def poll() -> None:
        if arrived.is_set():
            raise Cancellation

    with running(Model(hang)) as engine:
        with pytest.raises(Cancellation):
            engine.run(sampler(1), poll=poll)
        release.set()


def test_an_error_of_the_sampler_is_raised_to_its_own_job() -> None:
    def broken() -> Sampler:
        yield from ()
        raise ZeroDivisionError

    with running(Model()) as engine, pytest.raises(ZeroDivisionError):
        engine.run(broken())


def test_jobs_hear_of_an_engine_that_was_stopped() -> None:
    with running(Model()) as engine:
        pass
    with pytest.raises(EngineBroken):
        engine.run(sampler(1))


def test_one_call_has_tiles_of_one_size() -> None:
    jobs = [sampler(1), sampler(2, side=4), sampler(3), sampler(4, side=6)]
    expected = [alone(sampler(1)), alone(sampler(2, side=4)), alone(sampler(3))]
    model = Model()
    with running(model) as engine:
        latents = run_together(engine, jobs)
    for batch in model.batches:
        assert len({request.tile_size for request in batch}) == 1
    assert all(map(torch.equal, latents, expected))


def test_an_engine_without_room_for_a_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tiles is 0"):
        Engine(Model().predict, max_tiles=0)


@pytest.fixture(scope="module")
def pipeline() -> StableSR:
    """The embedded weights on tiles of 16 latent cells instead of 64, which is 16 times faster."""
    tiny = get_preset("tiny")
    return StableSR.load(preset_folder(tiny), replace(tiny, native=128, tile=16, overlap=8))


def test_jobs_of_different_sizes_and_timesteps_give_what_they_give_alone(
    pipeline: StableSR,
) -> None:
    images = [torch.rand(1, 3, 48, 48), torch.rand(1, 3, 32, 48), torch.rand(1, 3, 20, 20)]
    options = [narrow.parameters(steps=steps, seed=seed) for seed, steps in enumerate((3, 2, 4))]
    jobs = [
        (pipeline.prepare(image, option), option)
        for image, option in zip(images, options, strict=True)
    ]

    class Whole(Model):
        def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
            self.batches.append(list(requests))
            return pipeline.predict(requests)

    model = Whole()
    with running(model, max_tiles=4) as engine:
        latents = run_together(engine, [pipeline.sample(*job) for job in jobs])
    assert max(model.tiles) > 1
    for (encoded_image, option), latent in zip(jobs, latents, strict=True):
        expected = latent_of(pipeline, encoded_image, option)
        assert (latent - expected).abs().max() < 1e-5
