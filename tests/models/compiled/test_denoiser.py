"""Network calls in buckets; that they are whole graphs, that what fails is said, and counted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import models.arithmetic
from models.checkpoints.folder import random_networks
from models.compiled import Compiling, Denoiser, Mode, bucket_of, padded, room
from models.errors import InvalidOption
from models.folding import fold
from models.networks.bundle import Networks
from models.pipeline import StableSR
from models.plan import Resources
from models.sampling import StepRequest
from tests.models import narrow
from tests.models.compiler import Compiler, Tracer
from tests.models.folding import small

CPU = torch.device("cpu")
ON = Compiling("on")
MODES: tuple[Mode, Mode] = ("on", "off")


@pytest.fixture(scope="module")
def networks() -> Networks:
    return fold(small.made(torch.float32))


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(torch, "compile", found)
    return found


def tiles(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    noisy, lr = torch.randn(2, n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return noisy, lr


def plain(networks: Networks, n: int) -> Tensor:
    with torch.inference_mode():
        return networks.predict(*tiles(n), list(range(n)), None)


def test_a_call_goes_into_the_smallest_bucket_that_holds_it() -> None:
    assert [bucket_of(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]
    assert [room(n) for n in (1, 2, 3, 4, 7, 8, 9)] == [1, 2, 2, 4, 4, 8, 8]
    tile = torch.arange(6.0).view(3, 2)
    assert torch.equal(padded(tile, 5), torch.cat([tile, tile[2:], tile[2:]]))
    assert padded(tile, 3) is tile


def test_each_bucket_is_compiled_once_and_gives_what_is_computed_plainly(
    networks: Networks, compiler: Compiler
) -> None:
    denoiser = Denoiser(networks, CPU, ON, offloaded=False)
    for n in (1, 3, 4, 2, 3):
        out = denoiser(*tiles(n), list(range(n)), None)
        torch.testing.assert_close(out, plain(networks, n), rtol=1e-4, atol=1e-5)
    assert compiler.sizes == [1, 4, 4, 2, 4]
    assert compiler.made == ["whole_1", "whole_4", "whole_2"]
    assert not denoiser.eager_calls


def test_encoder_and_unet_are_one_graph_for_any_call_of_a_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    networks = fold(random_networks(narrow.CONFIG, CPU, torch.float32))
    tracer = Tracer()
    monkeypatch.setattr(torch, "compile", tracer)
    denoiser = Denoiser(networks, CPU, ON, offloaded=False)
    for timesteps in ([7, 7], [0, 999]):
        out = denoiser(*tiles(2), timesteps, None)
        with torch.inference_mode():
            right = networks.predict(*tiles(2), timesteps, None)
        torch.testing.assert_close(out, right, rtol=1e-4, atol=1e-5)
    assert len(tracer.graphs) == 1
    assert not denoiser.eager_calls


def test_a_graph_computes_products_in_float32_where_halves_would_be_emulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2\n")
    monkeypatch.setattr(models.arithmetic, "_CPUINFO", tmp_path / "cpuinfo")
    models.arithmetic._flags.cache_clear()
    tracer = Tracer()
    monkeypatch.setattr(torch, "compile", tracer)
    try:
        halves = fold(random_networks(narrow.CONFIG, CPU, torch.bfloat16))
        noisy, lr = (tile.bfloat16() for tile in tiles(2))
        found = [
            Denoiser(halves, CPU, Compiling(mode), offloaded=False)(noisy, lr, [3, 900], None)
            for mode in MODES
        ]
    finally:
        models.arithmetic._flags.cache_clear()
    assert torch.equal(*found)
    [graph] = tracer.graphs
    products = [
        node.meta["example_value"].dtype
        for node in graph.graph.nodes
        if node.target in (torch.conv2d, torch.nn.functional.linear)
    ]
    assert len(products) > 100
    assert set(products) == {torch.float32}


def test_what_cannot_be_compiled_is_computed_said_and_counted(
    networks: Networks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Compiler(RuntimeError("no working C++ compiler found"))
    monkeypatch.setattr(torch, "compile", compiler)
    denoiser = Denoiser(networks, CPU, ON, offloaded=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            out = denoiser(*tiles(2), [0, 1], None)
            torch.testing.assert_close(out, plain(networks, 2), rtol=1e-4, atol=1e-5)
    assert compiler.sizes == [2]  # it is not tried again
    assert denoiser.eager_calls == {"failure": 3}
    [said] = caplog.messages
    assert "calls of 2 tiles could not be compiled (whole)" in said
    assert "no working C++ compiler found" in said


def test_a_call_that_runs_out_of_memory_is_not_taken_for_one_that_cannot_be_compiled(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler(torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(torch, "compile", compiler)
    denoiser = Denoiser(networks, CPU, ON, offloaded=False)
    with pytest.raises(torch.OutOfMemoryError):
        denoiser(*tiles(4), [0] * 4, None)
    compiler.error = None
    denoiser(*tiles(4), [0] * 4, None)
    assert not denoiser.eager_calls


def test_tiles_with_a_prompt_and_networks_that_move_are_computed_eagerly_and_counted(
    networks: Networks, compiler: Compiler, caplog: pytest.LogCaptureFixture
) -> None:
    context = torch.randn(1, 3, 12)
    denoiser = Denoiser(networks, CPU, ON, offloaded=False)
    for _ in range(2):
        denoiser(*tiles(1), [5], context)
    moving = Denoiser(networks, CPU, ON, offloaded=True)
    moving.warm(4, 8)
    moving(*tiles(1), [5], None)
    assert compiler.sizes == []
    assert denoiser.eager_calls == {"prompt": 2}
    assert moving.eager_calls == {"offload": 1}
    assert [text.split(":")[0] for text in caplog.messages] == ["calls are not compiled"] * 2


def test_every_bucket_up_to_the_room_there_is_is_warmed(
    networks: Networks, compiler: Compiler
) -> None:
    Denoiser(networks, CPU, ON, offloaded=False).warm(6, 8)
    Denoiser(networks, CPU, Compiling("on", fixed_batch=3), offloaded=False).warm(6, 8)
    Denoiser(networks, CPU, Compiling("off"), offloaded=False).warm(6, 8)
    assert compiler.sizes == [1, 2, 4, 3]


@pytest.mark.parametrize("mode", MODES)
def test_encoder_and_unet_apart_give_what_they_give_together(
    networks: Networks, compiler: Compiler, mode: Mode
) -> None:
    apart = Denoiser(networks, CPU, Compiling(mode, ahead=8), offloaded=False).apart
    assert apart is not None
    assert apart.rows_ahead == 8
    noisy, lr = tiles(3)
    features = apart.encode(lr, [0, 1, 2], 8)
    assert [len(feature) for feature in features] == [3] * 4
    found = [apart.denoise(noisy[i : i + 1], i, [f[i : i + 1] for f in features]) for i in range(3)]
    torch.testing.assert_close(torch.cat(found), plain(networks, 3), rtol=1e-4, atol=1e-5)
    assert compiler.made == (["encode_8", "denoise_1"] if mode == "on" else [])


def test_what_goes_apart_is_warmed_as_well(networks: Networks, compiler: Compiler) -> None:
    denoiser = Denoiser(networks, CPU, Compiling("on", ahead=8), offloaded=False)
    denoiser.warm(6, 8)
    # There is room for calls of four.
    assert denoiser.rows_ahead == 4
    whole = ["whole_1", "whole_2", "whole_4"]
    assert compiler.made == [*whole, "encode_4", "denoise_1"]
    compiler.made.clear()
    denoiser.warm(1, 8)
    assert denoiser.apart is None
    assert compiler.made == []


def test_the_encoder_goes_ahead_in_compiled_calls_of_a_gpu_and_not_with_a_fixed_batch(
    networks: Networks,
) -> None:
    cuda = torch.device("cuda")
    assert Compiling("auto").rows_ahead(cuda) == 8
    assert Compiling("off").rows_ahead(cuda) == Compiling("on").rows_ahead(CPU) == 0
    assert Compiling("auto", ahead=0).rows_ahead(cuda) == 0
    assert Compiling(fixed_batch=2, ahead=8).rows_ahead(cuda) == 0
    assert Denoiser(networks, CPU, Compiling(ahead=8), offloaded=True).apart is None
    with pytest.raises(InvalidOption, match="ahead is -1"):
        Compiling(ahead=-1)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_with_a_fixed_batch_a_tile_does_not_depend_on_what_else_is_in_its_call(
    networks: Networks, compiler: Compiler, mode: Any
) -> None:
    denoiser = Denoiser(networks, CPU, Compiling(mode, fixed_batch=4), offloaded=False)
    noisy, lr = tiles(6)
    times = [3, 500, 999, 40, 8, 77]
    together = denoiser(noisy, lr, times, None)
    for i in range(6):
        alone = denoiser(noisy[i : i + 1], lr[i : i + 1], times[i : i + 1], None)
        assert torch.equal(alone[0], together[i])
    assert set(compiler.sizes) <= {4}
    assert denoiser.room(64) == 4


def test_a_pipeline_asks_for_calls_that_fill_a_bucket(compiler: Compiler) -> None:
    for compiling, tile_batch in ((ON, 4), (Compiling("off"), 6), (Compiling("off", None, 5), 5)):
        sr = StableSR.with_random_weights(
            narrow.CONFIG, narrow.PRESET, resources=Resources(tile_batch=6), compiling=compiling
        )
        assert sr.tile_batch == tile_batch
    noisy, lr = tiles(3)
    sr = StableSR.with_random_weights(narrow.CONFIG, narrow.PRESET, compiling=ON)
    [out] = sr.predict([StepRequest(noisy, lr, 9, None, 0, 1)])
    assert out.shape == noisy.shape
    assert compiler.sizes == [4]


def test_the_cache_lies_where_it_was_asked_for(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    Denoiser(networks, CPU, Compiling("on", tmp_path / "c"), offloaded=False)
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(tmp_path / "c")


def test_a_cache_that_cannot_be_made_is_said(
    networks: Networks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    Denoiser(networks, CPU, Compiling("on", tmp_path / "file" / "c"), offloaded=False)
    [said] = caplog.messages
    assert "the next start compiles again" in said


def test_auto_compiles_on_a_gpu_only() -> None:
    auto = Compiling("auto")
    assert auto.wanted(torch.device("cuda:1"))
    assert not auto.wanted(CPU)
    assert not Compiling("off").wanted(torch.device("cuda"))
    with pytest.raises(InvalidOption, match="fixed_batch is 0"):
        Compiling(fixed_batch=0)


def test_attention_is_fused_where_kernels_are_laid_out_channels_last() -> None:
    networks = fold(small.made(torch.float32))
    denoiser = Denoiser(networks, CPU, ON, offloaded=False)
    assert denoiser.wanted
    tile = torch.zeros(1, 4, 8, 8)
    # Whatever this backend cannot do is an error here.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        networks.predict(tile, tile, [500], None)
