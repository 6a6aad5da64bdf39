"""Network calls in buckets; that they are whole graphs, that what fails is said, and counted; and
what is done when memory runs out."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.checkpoints.folder import random_networks
from models.compiler import CompileMode, CompileOptions
from models.denoiser import Denoiser, TileBatch, bucket_of
from models.errors import InvalidOption
from models.fusing import fuse
from models.memory import Fallbacks, MemoryBudget
from models.networks.bundle import Networks
from models.pipeline import StableSR
from models.sampling import StepRequest
from tests.models import narrow
from tests.models.compiler import Compiler, Tracer
from tests.models.fusing import small

CPU = torch.device("cpu")
ON = CompileOptions("on")


@pytest.fixture(scope="module")
def networks() -> Networks:
    return fuse(small.build(torch.float32))


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(torch, "compile", found)
    return found


def tiles(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    noisy, lr = torch.randn(2, n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return noisy, lr


def made(networks: Networks, options: CompileOptions = ON, *, offload: bool = False) -> Denoiser:
    return Denoiser(networks, CPU, options, Fallbacks(), offload=offload)


def compile_all(denoiser: Denoiser, tiles: int) -> None:
    for step in denoiser.compilations(tiles, 8):
        step()


def batch(noisy: Tensor, lr: Tensor, timesteps: Sequence[int]) -> TileBatch:
    return TileBatch(noisy, lr, tuple(timesteps), None)


def plain(networks: Networks, n: int) -> Tensor:
    with torch.inference_mode():
        return networks.predict(*tiles(n), list(range(n)), None)


def test_a_small_call_is_computed_by_one_thread_and_this_one_keeps_its_own(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        denoiser = made(networks, CompileOptions("off"))
        used: list[int] = []
        denoise = networks.denoise

        def counted(*arguments: Any) -> Tensor:
            out = denoise(*arguments)
            used.append(torch.get_num_threads())
            return out

        monkeypatch.setattr(networks, "denoise", counted)
        found = denoiser.denoise(batch(*tiles(2), [0, 1]))
        assert (used, torch.get_num_threads()) == ([1], 3)
        # A large one is computed here, with all.
        monkeypatch.setattr("models.denoiser._ONE_THREAD", 0)
        assert torch.allclose(denoiser.denoise(batch(*tiles(2), [0, 1])), found, atol=1e-5)
        assert used == [1, 3]
    finally:
        torch.set_num_threads(threads)


def test_a_call_goes_into_the_smallest_bucket_that_holds_it(networks: Networks) -> None:
    assert [bucket_of(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]
    assert [made(networks).room(n) for n in (1, 2, 3, 4, 7, 8, 9)] == [1, 2, 2, 4, 4, 8, 8]
    given = batch(*tiles(3), [5, 6, 7])
    full = given.pad(5)
    assert full.timesteps == (5, 6, 7, 7, 7)
    assert torch.equal(full.lr, given.lr[[0, 1, 2, 2, 2]])
    assert given.pad(3) is given


def test_a_batch_holds_the_tiles_of_all_requests_in_order() -> None:
    empty, context = torch.zeros(1, 3, 12, dtype=torch.bfloat16), torch.ones(2, 3, 12)
    one, two = StepRequest(*tiles(1), 7, None, 0, 1), StepRequest(*tiles(2), 9, context, 3, 4)
    both = TileBatch.of([one, two], empty)
    assert both.timesteps == (7, 9, 9)
    assert torch.equal(both.noisy, torch.cat([one.noisy, two.noisy]).bfloat16())
    assert both.context is not None
    assert torch.equal(both.context, torch.cat([empty, context]))
    assert TileBatch.of([one, one], empty).context is None


def test_each_bucket_is_compiled_once_and_gives_what_is_computed_plainly(
    networks: Networks, compiler: Compiler
) -> None:
    denoiser = made(networks)
    for n in (1, 3, 4, 2, 3):
        out = denoiser.denoise(batch(*tiles(n), range(n)))
        torch.testing.assert_close(out, plain(networks, n), rtol=1e-4, atol=1e-5)
    assert compiler.sizes == [1, 4, 4, 2, 4]
    assert compiler.made == ["whole_1", "whole_4", "whole_2"]
    assert not denoiser.fallbacks


def test_encoder_and_unet_are_one_graph_for_any_call_of_a_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levels: dict[str, Any] = {"widths": (8, 8), "attention": (True, False)}
    config = replace(
        narrow.CONFIG,
        unet=replace(narrow.CONFIG.unet, **levels),
        encoder=replace(narrow.CONFIG.encoder, **levels),
    )
    networks = fuse(random_networks(config, CPU, torch.float32))
    tracer = Tracer()
    monkeypatch.setattr(torch, "compile", tracer)
    denoiser = made(networks)
    for timesteps in ([7, 7], [0, 999]):
        out = denoiser.denoise(batch(*tiles(2), timesteps))
        with torch.inference_mode():
            right = networks.predict(*tiles(2), timesteps, None)
        torch.testing.assert_close(out, right, rtol=1e-4, atol=1e-5)
    assert len(tracer.graphs) == 1
    assert not denoiser.fallbacks


def test_what_cannot_be_compiled_is_computed_said_and_counted(
    networks: Networks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Compiler(RuntimeError("no working C++ compiler found"))
    monkeypatch.setattr(torch, "compile", compiler)
    denoiser = made(networks)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            out = denoiser.denoise(batch(*tiles(2), [0, 1]))
            torch.testing.assert_close(out, plain(networks, 2), rtol=1e-4, atol=1e-5)
    assert compiler.sizes == [2]  # it is not tried again
    assert denoiser.fallbacks == {"eager_failure": 3}
    [said] = caplog.messages
    assert "calls of 2 tiles could not be compiled (whole)" in said
    assert "no working C++ compiler found" in said


def test_a_call_that_runs_out_of_memory_is_not_taken_for_one_that_cannot_be_compiled(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler(torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(torch, "compile", compiler)
    denoiser = made(networks)
    with pytest.raises(torch.OutOfMemoryError):
        denoiser.denoise(batch(*tiles(1), [0]))
    compiler.error = None
    denoiser.denoise(batch(*tiles(1), [0]))
    assert not denoiser.fallbacks


def test_tiles_with_a_prompt_and_networks_that_move_are_computed_eagerly_and_counted(
    networks: Networks, compiler: Compiler, caplog: pytest.LogCaptureFixture
) -> None:
    context = torch.randn(1, 3, 12)
    denoiser = made(networks)
    for _ in range(2):
        denoiser.denoise(TileBatch(*tiles(1), (5,), context))
    moving = made(networks, offload=True)
    assert moving.compilations(4, 8) == []
    moving.denoise(batch(*tiles(1), [5]))
    assert compiler.sizes == []
    assert denoiser.fallbacks == {"eager_prompt": 2}
    assert moving.fallbacks == {"eager_offload": 1}
    assert [text.split(":")[0] for text in caplog.messages] == ["calls are not compiled"] * 2


def test_tiles_of_a_small_image_are_computed_eagerly_and_counted(
    networks: Networks, compiler: Compiler
) -> None:
    denoiser = made(networks)
    compile_all(denoiser, 1)
    sizes = list(compiler.sizes)
    small = torch.randn(1, 4, 8, 16)
    denoiser.denoise(batch(small, small, [5]))
    assert compiler.sizes == sizes
    assert denoiser.fallbacks == {"eager_size": 1}


def test_every_bucket_up_to_the_room_there_is_is_compiled_before_the_first_image(
    networks: Networks, compiler: Compiler
) -> None:
    compile_all(made(networks), 6)
    compile_all(made(networks, CompileOptions("on", fixed_batch=3)), 6)
    compile_all(made(networks, CompileOptions("off")), 6)
    assert compiler.sizes == [1, 2, 4, 3]


@pytest.mark.parametrize("mode", ["on", "off"])
def test_with_a_fixed_batch_a_tile_does_not_depend_on_what_else_is_in_its_call(
    networks: Networks, compiler: Compiler, mode: CompileMode
) -> None:
    denoiser = made(networks, CompileOptions(mode, fixed_batch=4))
    six = batch(*tiles(6), [3, 500, 999, 40, 8, 77])
    together = denoiser.denoise(six)
    for i in range(6):
        alone = denoiser.denoise(six.part(i, i + 1))
        assert torch.equal(alone[0], together[i])
    assert set(compiler.sizes) <= {4}
    assert denoiser.room(64) == 4


def test_a_pipeline_asks_for_calls_that_fill_a_bucket(
    networks: Networks, compiler: Compiler
) -> None:
    def sr(compiling: CompileOptions, budget: MemoryBudget | None = None) -> StableSR:
        return StableSR(networks, narrow.PRESET, CPU, torch.float32, budget, compiling)

    for compiling, tile_batch in (
        (ON, 4),
        (CompileOptions("off"), 6),
        (CompileOptions("off", None, 5), 5),
    ):
        assert sr(compiling, MemoryBudget(tile_batch=6)).tile_batch == tile_batch
    noisy, lr = tiles(3)
    [out] = sr(ON).predict([StepRequest(noisy, lr, 9, None, 0, 1)])
    assert out.shape == noisy.shape
    assert compiler.sizes == [4]


def test_the_cache_lies_where_it_was_asked_for(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    made(networks, CompileOptions("on", tmp_path / "c"))
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(tmp_path / "c")


def test_a_cache_that_cannot_be_made_is_said(
    networks: Networks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    made(networks, CompileOptions("on", tmp_path / "file" / "c"))
    [said] = caplog.messages
    assert "the next start compiles again" in said


def test_auto_compiles_on_a_gpu_only() -> None:
    auto = CompileOptions("auto")
    assert auto.suits(torch.device("cuda:1"))
    assert not auto.suits(CPU)
    assert not CompileOptions("off").suits(torch.device("cuda"))
    with pytest.raises(InvalidOption, match="fixed_batch is 0"):
        CompileOptions(fixed_batch=0)


def test_attention_is_fused_where_kernels_are_laid_out_channels_last() -> None:
    networks = fuse(small.build(torch.float32))
    denoiser = made(networks)
    assert denoiser.compiles
    tile = torch.zeros(1, 4, 8, 8)
    # Whatever this backend cannot do is an error here.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        networks.predict(tile, tile, [500], None)


class Small(Denoiser):
    """Has memory for `memory` tiles; keeps how many each call had."""

    def __init__(self, networks: Networks, memory: int, options: CompileOptions = ON) -> None:
        super().__init__(networks, CPU, options, Fallbacks(), offload=False)
        self.memory = memory
        self.calls: list[int] = []

    def _call(self, tiles: TileBatch) -> Tensor:
        self.calls.append(len(tiles))
        if len(tiles) > self.memory:
            raise torch.OutOfMemoryError("no room")
        return tiles.noisy + tiles.lr


def some(n: int) -> TileBatch:
    return batch(*tiles(n), [500] * n)


def test_calls_are_halved_until_they_fit_and_stay_small(networks: Networks) -> None:
    denoiser = Small(networks, memory=3)
    eight = some(8)
    for _ in range(2):
        assert torch.equal(denoiser.denoise(eight), eight.noisy + eight.lr)
    assert denoiser.calls == [8, 4, *[2] * 4, *[2] * 4]
    assert denoiser.fallbacks == {"tile_batch": 2}


def test_with_room_there_is_one_call(networks: Networks) -> None:
    denoiser = Small(networks, memory=8)
    denoiser.denoise(some(8))
    assert denoiser.calls == [8]


def test_a_tile_that_does_not_fit_alone_is_an_error(networks: Networks) -> None:
    denoiser = Small(networks, memory=0)
    with pytest.raises(torch.OutOfMemoryError):
        denoiser.denoise(some(2))
    assert denoiser.calls == [2, 1]
    assert denoiser.fallbacks == {"tile_batch": 1}


def test_a_fixed_batch_that_does_not_fit_is_an_error(networks: Networks) -> None:
    denoiser = Small(networks, 1, CompileOptions("off", fixed_batch=4))
    with pytest.raises(torch.OutOfMemoryError):
        denoiser.denoise(some(6))
    assert denoiser.calls == [4]


def test_other_errors_are_not_tried_again(networks: Networks) -> None:
    class Broken(Small):
        def _call(self, tiles: TileBatch) -> Tensor:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    denoiser = Broken(networks, memory=8)
    with pytest.raises(RuntimeError, match="illegal"):
        denoiser.denoise(some(3))
    assert not denoiser.fallbacks


def test_what_a_failed_call_computed_is_freed_before_the_next(networks: Networks) -> None:
    computed: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class OneTile(Small):
        """Has memory for one tile, if nothing else is held."""

        def _call(self, tiles: TileBatch) -> Tensor:
            alive.append(sum(tensor() is not None for tensor in computed))
            activations = tiles.noisy + 1
            computed.append(weakref.ref(activations))
            if len(tiles) > 1:
                raise torch.OutOfMemoryError("no memory for that many tiles")
            return tiles.noisy + tiles.lr

    OneTile(networks, memory=1).denoise(some(4))
    assert alive == [0] * 6
