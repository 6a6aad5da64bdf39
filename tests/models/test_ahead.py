"""The encoder ahead of the UNet: what it saves, and when it goes with the UNet."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.ahead import Foreseen
from models.checkpoints.folder import random_networks
from models.compiled import Compiling
from models.options import Options
from models.pipeline import StableSR
from models.plan import Resources
from models.sampling import drive_all
from tests.models import narrow

CPU = torch.device("cpu")
SMALL = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
LARGE = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(4))


def made(ahead: int, *, fixed: int | None = None) -> StableSR:
    """The same random numbers at every call."""
    torch.manual_seed(7)
    networks = random_networks(narrow.CONFIG, CPU, torch.float32)
    compiling = Compiling("off", fixed_batch=fixed, ahead=ahead)
    given = Resources(tile_batch=8, offload=False)
    return StableSR(networks, narrow.PRESET, CPU, torch.float32, given, compiling)


class Watched:
    """Rows of the encoder's calls, and tiles of the UNet's."""

    def __init__(self, sr: StableSR) -> None:
        self.rows: list[int] = []
        self.tiles: list[int] = []
        self.timesteps: list[list[int]] = []
        sr.networks.encoder.register_forward_hook(self._encoded)
        sr.networks.unet.register_forward_hook(self._denoised)

    def _encoded(self, module: object, arguments: Sequence[Tensor], out: object) -> None:
        self.rows.append(len(arguments[0]))
        self.timesteps.append(arguments[1].tolist())

    def _denoised(self, module: object, arguments: Sequence[Tensor], out: object) -> None:
        self.tiles.append(len(arguments[0]))


def latents(sr: StableSR, jobs: Sequence[tuple[Tensor, Options]], most: int = 8) -> list[Tensor]:
    """Of jobs that go together."""
    samplers = []
    for image, options in jobs:
        with sr.prepare(image, options) as prepared:
            samplers.append(sr.sample(prepared, options))
    return drive_all(samplers, sr.predict, max_tiles=most)


def test_steps_of_a_single_tile_have_the_encoder_called_once_for_several() -> None:
    plain, ours = made(0), made(8)
    seen, options = Watched(ours), Options(steps=11, seed=1)
    [right] = latents(plain, [(SMALL, options)])
    [found] = latents(ours, [(SMALL, options)])
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    assert seen.rows == [8, 3]
    assert seen.tiles == [1] * 11
    every = [t for call in seen.timesteps for t in call]
    assert every == sorted(set(every), reverse=True)


def test_full_calls_have_the_encoder_with_the_unet() -> None:
    plain, ours = made(0), made(8)
    seen, options = Watched(ours), Options(steps=2)
    [right], [found] = (latents(sr, [(LARGE, options)]) for sr in (plain, ours))
    assert torch.equal(found, right)
    assert seen.rows == seen.tiles
    assert max(seen.rows) > 2


def test_jobs_that_share_calls_have_the_encoder_with_the_unet_until_one_is_left() -> None:
    jobs = [(SMALL, Options(steps=3, seed=1)), (SMALL.flip(3), Options(steps=7, seed=2))]
    alone = [latents(made(0), [job])[0] for job in jobs]
    ours = made(8)
    seen = Watched(ours)
    for found, right in zip(latents(ours, jobs), alone, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    assert seen.tiles == [2] * 3 + [1] * 4
    assert seen.rows == [2] * 3 + [4]


def test_what_was_known_before_another_job_came_is_used_when_it_is_gone() -> None:
    ours = made(8)
    seen = Watched(ours)
    options = Options(steps=6, seed=1)
    with ours.prepare(SMALL, options) as prepared:
        one, other = (ours.sample(prepared, options) for _ in range(2))
        step = next(one)
        step = one.send(iter(ours.predict([step.part(0, 1)])[0]))
        both = ours.predict([step.part(0, 1), next(other).part(0, 1)])
        step = one.send(iter(both[0]))
        ours.predict([step.part(0, 1)])
    assert seen.rows == [6, 2]
    assert seen.tiles == [1, 2, 1]


def test_a_tile_with_a_prompt_has_the_encoder_with_the_unet() -> None:
    ours = made(8)
    seen, options = Watched(ours), Options(steps=5)
    with ours.prepare(SMALL, options) as prepared:
        request = next(ours.sample(prepared, options)).part(0, 1)
    prompt = ours.networks.context + 1
    ours.predict([replace(request, context=prompt)])
    ours.predict([request])
    assert seen.rows == [1, 5]


def test_there_is_none_with_a_fixed_batch() -> None:
    fixed = made(8, fixed=2)
    seen = Watched(fixed)
    latents(fixed, [(SMALL, Options(steps=3))])
    assert seen.rows == seen.tiles
    assert len(seen.rows) == 3


def test_when_memory_runs_out_fewer_steps_are_computed_ahead_and_it_is_counted() -> None:
    ours = made(8)

    def full(module: object, arguments: Sequence[Tensor]) -> None:
        if len(arguments[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    ours.networks.encoder.register_forward_pre_hook(full)
    seen, options = Watched(ours), Options(steps=9, seed=1)
    [found] = latents(ours, [(SMALL, options)])
    [right] = latents(made(0), [(SMALL, options)])
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    # The first step goes with the UNet, and four at once follow.
    assert seen.rows == [1, 4, 4]
    assert ours.departures == {"ahead": 1}


def test_another_error_of_the_encoder_is_not_taken_for_it() -> None:
    ours = made(8)

    def broken(module: object, arguments: Sequence[Tensor]) -> None:
        raise RuntimeError("a fault")

    ours.networks.encoder.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="a fault"):
        latents(ours, [(SMALL, Options(steps=2))])
    assert not ours.departures


def test_features_go_when_their_steps_are_over() -> None:
    foreseen = Foreseen([900, 500, 100])
    for step in range(3):
        foreseen.keep(step, [torch.zeros(1)])
    foreseen.forget(1)
    assert [foreseen.of(step) is not None for step in range(3)] == [False, True, True]


def test_features_go_with_a_job_that_is_ended() -> None:
    ours, options = made(8), Options(steps=5)
    with ours.prepare(SMALL, options) as prepared:
        sampler = ours.sample(prepared, options)
        step = next(sampler)
        ours.predict([step.part(0, 1)])
        request = step.part(0, 1)
        assert request.ahead is not None
        known = request.ahead.foreseen
        assert known.of(4) is not None
        held = weakref.ref(known)
        del step, request, known
        sampler.close()
        del sampler
    gc.collect()
    assert held() is None
