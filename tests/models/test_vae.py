"""Images of a single tile at once and in strips, and what is done when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import models.vae
from models.checkpoints.folder import random_networks
from models.compiler import CompileOptions
from models.fusing import fuse
from models.memory import MemoryBudget
from models.networks.bundle import Networks
from models.pipeline import StableSR
from models.strips import StripConfig
from models.vae import further
from tests.models import narrow
from tests.models.compiler import Compiler, Tracer
from tests.models.narrow import pipeline

CPU = torch.device("cpu")
SMALL = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
OPTIONS = narrow.parameters(scale=1.5, seed=3)
IMAGE = torch.rand(1, 3, 60, 90, generator=torch.Generator().manual_seed(0))
LARGE = torch.rand(1, 3, 16, 18, generator=torch.Generator().manual_seed(4))


class WholeImages(CompileOptions):
    """On a processor too."""

    def whole_images(self, device: torch.device) -> bool:
        return self.suits(device)


WHOLE = WholeImages("on")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(torch, "compile", found)
    return found


def made(
    compiling: CompileOptions | None = None,
    budget: MemoryBudget | None = None,
    *,
    first_stage: bool = False,
    offload: bool = False,
) -> StableSR:
    """The same random numbers at every call."""
    torch.manual_seed(7)
    networks = random_networks(narrow.CONFIG, CPU, torch.float32)
    if first_stage:
        other = Networks(narrow.CONFIG, first_stage="encoder").eval()
        networks.first_stage = other.first_stage
    given = budget or MemoryBudget(offload=offload)
    return StableSR(fuse(networks), narrow.PRESET, CPU, torch.float32, given, compiling)


@pytest.mark.parametrize("first_stage", [False, True], ids=["", "own first stage"])
@pytest.mark.parametrize("fidelity", [0.0, 0.5, 1.0])
def test_an_image_is_the_same_whole_and_in_strips(
    compiler: Compiler, fidelity: float, first_stage: bool
) -> None:
    options = narrow.parameters(fidelity_weight=fidelity, color_fix="none")
    wanted = made(first_stage=first_stage).upscale(SMALL, options)
    ours = made(WHOLE, first_stage=first_stage)
    assert float((ours.upscale(SMALL, options) - wanted).abs().max()) < 1e-5
    decoded = "fuse_image_1" if fidelity else "decode_image_1"
    called = [name for name in compiler.made if name != "whole_1"]
    assert called == ["encode_image_1", *["first_stage_1"] * first_stage, decoded]
    assert not ours.fallbacks


@pytest.mark.parametrize(
    ("image", "budget"),
    [
        pytest.param(LARGE, None, id="larger"),
        pytest.param(SMALL, MemoryBudget(decode_tile=16), id="strips were asked for"),
    ],
)
def test_other_images_go_in_strips(
    compiler: Compiler, image: Tensor, budget: MemoryBudget | None
) -> None:
    ours = made(WHOLE, budget)
    wanted = made(None, budget).upscale(image)
    assert float((ours.upscale(image) - wanted).abs().max()) < 1e-4
    assert all(name.startswith("whole_") for name in compiler.made)


def test_what_was_encoded_whole_can_be_decoded_in_strips(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = narrow.parameters(fidelity_weight=1.0)
    plain, ours = made(), made(WHOLE)
    with plain.prepare(SMALL, options) as right, ours.prepare(SMALL, options) as prepared:
        assert prepared.encoding.nbytes == right.encoding.nbytes > 0
        latent = torch.zeros_like(prepared.latent)
        # Others have taken the memory meanwhile.
        monkeypatch.setattr(ours.planner, "strips_now", lambda *_: StripConfig(height=8))
        wanted = plain.decode(right, latent, options)
        assert float((ours.decode(prepared, latent, options) - wanted).abs().max()) < 1e-5
    assert compiler.made == ["encode_image_1"]
    assert prepared.encoding.nbytes == 0


def test_what_cannot_be_compiled_goes_in_strips_is_said_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", Compiler(RuntimeError("no working C++ compiler found")))
    ours = made(WHOLE)
    options = narrow.parameters(steps=1, fidelity_weight=1.0)
    wanted = made().upscale(SMALL, options)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert float((ours.upscale(SMALL, options) - wanted).abs().max()) < 1e-5
    # Of each image the encoding, one step and the decoding.
    assert ours.fallbacks == {"eager_failure": 6}
    assert [m for m in caplog.messages if "(fuse_image)" in m and "no working C++" in m]
    assert len(caplog.messages) == 3


def test_where_memory_runs_out_an_image_goes_in_strips(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = made().upscale(SMALL)
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    ours = made(WHOLE)
    with ours.prepare(SMALL, narrow.parameters()) as prepared:
        compiler.error = torch.OutOfMemoryError("CUDA out of memory")
        latent = torch.zeros_like(prepared.latent)
        found = ours.decode(prepared, latent, narrow.parameters())
        compiler.error = None
        again = ours.decode(prepared, latent, narrow.parameters())
    assert float((found - again).abs().max()) < 1e-5
    assert ours.fallbacks == {"image": 1}
    assert "image was whole and is in strips now" in caplog.text
    assert float((ours.upscale(SMALL) - wanted).abs().max()) < 1e-5


def test_each_of_its_calls_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = Tracer()
    monkeypatch.setattr(torch, "compile", tracer)
    ours = made(WHOLE)
    for step in ours._vae.compilations():
        step()
    assert len(tracer.graphs) == 3
    for fidelity in (0.0, 0.3, 1.0):
        with ours.prepare(SMALL, narrow.parameters(fidelity_weight=fidelity)) as prepared:
            ours.decode(prepared, prepared.latent, narrow.parameters(fidelity_weight=fidelity))
    assert len(tracer.graphs) == 3
    assert not ours.fallbacks


def test_all_is_compiled_before_the_first_image(compiler: Compiler) -> None:
    ours = made(WHOLE, MemoryBudget(tile_batch=1), first_stage=True)
    told: list[tuple[int, int]] = []
    ours.compile(lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2)]
    images = ["encode_image_1", "first_stage_1", "decode_image_1", "fuse_image_1"]
    assert compiler.made == ["whole_1", *images]
    for fidelity in (0.0, 1.0):
        ours.upscale(SMALL, narrow.parameters(fidelity_weight=fidelity))
    assert len(compiler.made) == 5
    compiler.made.clear()
    made(CompileOptions("on"), MemoryBudget(tile_batch=1)).compile()
    assert compiler.made == ["whole_1"]


def test_a_worker_starts_where_memory_has_no_room_to_compile_for_whole_images(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Compiler(torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(torch, "compile", compiler)
    ours = made(WHOLE, MemoryBudget(tile_batch=1))
    ours.compile()
    assert caplog.messages == ["not compiled yet, because memory ran out: CUDA out of memory"] * 2
    compiler.error = None
    ours.upscale(SMALL, narrow.parameters(steps=1))
    assert not ours.fallbacks


def test_images_go_whole_where_calls_are_compiled_for_a_gpu() -> None:
    cuda = torch.device("cuda")
    assert CompileOptions("auto").whole_images(cuda)
    assert not CompileOptions("off").whole_images(cuda)
    assert not CompileOptions("on").whole_images(CPU)
    assert not CompileOptions("auto", fixed_batch=2).whole_images(cuda)
    assert made(WHOLE, offload=True)._vae.compilations() == []


def failing_unless(keep: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any, **more: Any) -> Any:
        [strips] = [value for value in given if isinstance(value, StripConfig)]
        if strips.keep != keep:
            raise torch.OutOfMemoryError(f"no room for maps on the {strips.keep}")
        return real(*given, **more)

    return run


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_maps_move_on_when_memory_runs_out(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sr = pipeline()
    wanted = sr.upscale(IMAGE, OPTIONS)
    real = getattr(models.vae, stage)
    monkeypatch.setattr(models.vae, stage, failing_unless("disk", real))
    assert torch.equal(sr.upscale(IMAGE, OPTIONS), wanted)
    assert sr.fallbacks == {"keep": 1}


def test_features_that_moved_on_count_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sr = pipeline()
    real = getattr(models.vae, "encode")  # noqa: B009  # a name that is not exported
    monkeypatch.setattr(models.vae, "encode", failing_unless("disk", real))
    with sr.prepare(IMAGE, OPTIONS) as prepared:
        assert sr.planner.plan(60, 90, OPTIONS).strips.keep == "device"
        assert prepared.summary["keep"] == "disk"
        assert prepared.memory.disk > 0
        assert prepared.memory.device == prepared.latent.nbytes


def test_without_a_further_place_the_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    sr = pipeline()
    monkeypatch.setattr(models.vae, "decode", failing_unless("nowhere", lambda: None))
    with pytest.raises(torch.OutOfMemoryError, match="on the disk"):
        sr.upscale(IMAGE, OPTIONS)
    assert sr.fallbacks == {"keep": 1}


def test_strips_that_shrink_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sr = pipeline(decode_tile=32)
    wanted = sr.upscale(IMAGE, OPTIONS)
    real = F.conv2d

    def conv2d(rows: Tensor, *given: Any, **more: Any) -> Tensor:
        if rows.shape[2] > 24:
            raise torch.OutOfMemoryError("no room for a strip")
        return real(rows, *given, **more)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    found = sr.upscale(IMAGE, narrow.parameters(scale=1.5, seed=3, color_fix="adain"))
    assert sr.fallbacks["rows"] >= 2
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_further_places_are_the_host_and_the_disk_if_it_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = torch.device("cuda")
    near, on_host, on_disk = (StripConfig(5, keep) for keep in ("device", "host", "disk"))
    assert [further(strips, gpu) for strips in (near, on_host, on_disk)] == [on_host, on_disk, None]
    assert further(near, CPU) == on_disk
    monkeypatch.setattr(models.vae, "free_disk", lambda: 0)
    assert further(near, CPU) is None
