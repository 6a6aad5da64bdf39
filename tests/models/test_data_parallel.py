"""Network calls over several devices: exact, and the next call is well when one of them fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from models.checkpoints.folder import random_networks
from models.compiler import CompileMode, CompileOptions
from models.config import ModelConfig
from models.data_parallel import DataParallel
from models.denoiser import Denoiser, TileBatch
from models.fusing import fuse
from models.memory import Fallbacks
from models.networks.bundle import Networks
from models.pipeline import StableSR
from tests.models import narrow
from tests.models.compiler import Compiler

CPU = torch.device("cpu")


def narrow_sr() -> StableSR:
    """The same random numbers at every call."""
    torch.manual_seed(7)
    networks = random_networks(narrow.CONFIG, CPU, torch.float32)
    return StableSR(networks, narrow.PRESET, CPU, torch.float32)


def replica(mode: CompileMode = "off", config: ModelConfig = narrow.CONFIG) -> Denoiser:
    torch.manual_seed(7)
    networks = fuse(random_networks(config, CPU, torch.float32))
    return Denoiser(networks, CPU, CompileOptions(mode), Fallbacks(), offload=False)


def test_an_image_over_three_devices_is_that_of_one() -> None:
    image = torch.rand(1, 3, 18, 28, generator=torch.Generator().manual_seed(1))
    alone, other = (
        narrow_sr().upscale(image, narrow.parameters(steps=3, seed=seed)) for seed in (5, 6)
    )
    sr = narrow_sr()
    replicas = [made.denoiser for made in (sr, narrow_sr(), narrow_sr())]
    sr.denoiser = DataParallel([one for one in replicas if isinstance(one, Denoiser)])
    assert sr.denoiser.devices == (CPU, CPU, CPU)
    assert sr.tile_batch == 3 * sr.planner.tile_batch
    together = sr.upscale(image, narrow.parameters(steps=3, seed=5))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert float((together - other).abs().mean()) > 1e-3


@cache
def idle_networks() -> Networks:
    return random_networks(narrow.CONFIG, CPU, torch.bfloat16)


class Arithmetic(Denoiser):
    """Tells which tiles it had, and fails for some timesteps."""

    def __init__(self) -> None:
        super().__init__(idle_networks(), CPU, CompileOptions(), Fallbacks(), offload=False)
        self.calls: list[int] = []
        self.together: threading.Barrier | None = None

    def _call(self, tiles: TileBatch) -> Tensor:
        self.calls.append(len(tiles))
        if self.together is not None:
            self.together.wait()
        if 13 in tiles.timesteps:
            raise RuntimeError("a tile that cannot be predicted")
        if 14 in tiles.timesteps and len(tiles) > 1:
            raise MemoryError("no room for two")
        times = torch.tensor(tiles.timesteps).reshape(-1, 1, 1, 1)
        context = tiles.context
        text = 0 if context is None else context.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)
        return tiles.noisy.float() + 2 * tiles.lr.float() + times + text


class Call:
    """Tiles of different numbers, each at its own timestep."""

    def __init__(self, tiles: int, *, context: bool = False) -> None:
        self.noisy = torch.arange(tiles * 12.0).reshape(tiles, 3, 2, 2).bfloat16()
        self.times = list(range(100, 100 + tiles))
        self.context = torch.arange(tiles * 6.0).reshape(tiles, 3, 2) if context else None

    def by(self, denoiser: Denoiser | DataParallel) -> Tensor:
        lr, context = -self.noisy / 7, self.context
        return denoiser.denoise(TileBatch(self.noisy, lr, tuple(self.times), context))


@pytest.mark.parametrize(
    ("tiles", "shares"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (7, [3, 2, 2]), (8, [3, 3, 2])]
)
@pytest.mark.parametrize("context", [False, True])
def test_every_tile_has_its_own_prediction_whichever_device_makes_it(
    tiles: int, shares: list[int], context: bool
) -> None:
    call, replicas = Call(tiles, context=context), [Arithmetic() for _ in range(3)]
    assert torch.equal(call.by(DataParallel(replicas)), call.by(Arithmetic()))
    assert [sum(one.calls) for one in replicas] == shares + [0] * (3 - len(shares))


def test_all_devices_compute_at_the_same_time() -> None:
    replicas = [Arithmetic() for _ in range(3)]
    together = threading.Barrier(3, timeout=20)
    for one in replicas:
        one.together = together
    assert torch.equal(Call(6).by(DataParallel(replicas)), Call(6).by(Arithmetic()))


def test_every_device_compiles_what_it_will_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    parallel = DataParallel([replica("on"), replica("on"), replica("on")])
    assert parallel.room(5) == 12
    steps: list[Callable[[], None]] = parallel.compilations(8, 8)
    for step in steps:
        step()
    # Of eight tiles each has three at most.
    assert compiler.sizes == [1, 2] * 3


@pytest.mark.parametrize("which", [0, 2], ids=["the first", "another"])
def test_what_fails_on_a_device_is_raised_and_the_next_call_is_well(which: int) -> None:
    replicas = [Arithmetic() for _ in range(3)]
    parallel, call = DataParallel(replicas), Call(6)
    call.times[2 * which] = 13
    with pytest.raises(RuntimeError, match="a tile that cannot be predicted"):
        call.by(parallel)
    # The others have been heard out.
    assert [one.calls for one in replicas] == [[2]] * 3
    assert torch.equal(Call(6).by(parallel), Call(6).by(Arithmetic()))


def test_a_device_without_memory_halves_its_own_share_and_it_is_counted_once_for_all() -> None:
    replicas = [Arithmetic() for _ in range(3)]
    parallel, call = DataParallel(replicas), Call(6)
    call.times[-1] = 14
    alone = Call(6)
    alone.times[-1] = 14
    assert torch.equal(call.by(parallel), alone.by(Arithmetic()))
    assert [one.calls for one in replicas] == [[2], [2], [2, 1, 1]]
    assert replicas[0].fallbacks == {"tile_batch": 1}


def test_calls_that_were_not_compiled_are_counted_over_all_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", Compiler(RuntimeError("no working C++ compiler found")))
    replicas = [replica("on"), replica("on")]
    parallel = DataParallel(replicas)
    noisy, lr = torch.randn(2, 2, 4, 8, 8)
    parallel.denoise(TileBatch(noisy, lr, (5, 5), None))
    assert replicas[0].fallbacks == {"eager_failure": 2}
