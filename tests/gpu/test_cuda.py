"""What only a GPU can show: the same figures, images and limits of memory on CUDA.

Skipped where there is no GPU: `make gpu` on a machine that has one.
"""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.compiler import CompileOptions
from models.config import ModelConfig
from models.memory import MemoryBudget
from models.pipeline import StableSR
from models.presets import PRESETS
from models.sampling import StepRequest, drive_all
from models.strips import StripConfig, decode, encode
from tests.models import narrow
from tests.models.strips.images import latent_of, relative_error
from tests.parity import Golden, comparisons
from worker.device import check_device, choose_dtype

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

CUDA = torch.device("cuda")
GOLDEN = Path(__file__).parents[1] / "golden"
FEW = 3


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """TF32 rounds what a product reads to 10 bits; these tests compare float32 with float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def own_memory() -> Iterator[None]:
    gc.collect()
    torch.cuda.empty_cache()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture(scope="module")
def sr() -> StableSR:
    return StableSR.from_preset("tiny", CUDA)


def image_of(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 7, 7, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_gpu_at_hand_is_known_and_computes(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "worker.device")
    check_device(CUDA, dtype)
    assert torch.cuda.get_device_name(CUDA) in caplog.text
    assert f"UUID {torch.cuda.get_device_properties(CUDA).uuid}, " in caplog.text
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert choose_dtype("auto", CUDA) is (torch.bfloat16 if has_bfloat16 else torch.float16)


def test_a_failed_assertion_on_the_gpu_loses_it_for_the_process() -> None:
    code = """
import torch
from worker.device import check_device, is_device_lost

one, five = (torch.tensor([number], device="cuda") for number in (1, 5))
for call in (lambda: one[five].cpu(), lambda: check_device(one.device, torch.float32)):
    try:
        call()
    except RuntimeError as error:
        print(is_device_lost(error), flush=True)
"""
    command = [sys.executable, "-c", code]
    # Whatever the library's own end is without its device.
    out = subprocess.run(command, check=False, stdout=subprocess.PIPE).stdout
    assert out.split() == [b"True", b"True"]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_the_reference_values_are_reproduced_on_cuda(fused: bool) -> None:
    golden = Golden(GOLDEN, fused=fused, device="cuda")
    wrong = [f"{c.name}: {c.error:.1e} {c.note}" for c in comparisons(golden) if not c.ok]
    assert not wrong


@pytest.mark.parametrize("fidelity", [0.0, 1.0])
def test_an_image_is_that_of_the_cpu_within_rounding(sr: StableSR, fidelity: float) -> None:
    options = narrow.parameters(steps=FEW, fidelity_weight=fidelity, seed=3)
    image = image_of(100, 150)
    there, here = sr.upscale(image, options), StableSR.from_preset("tiny").upscale(image, options)
    assert there.device.type == "cpu"
    assert float((there - here).abs().max()) < 2 / 255
    assert float((there - here).abs().mean()) < 2e-4


def test_the_same_seed_gives_the_same_image_bit_for_bit(sr: StableSR) -> None:
    options = narrow.parameters(steps=FEW, seed=5)
    image = image_of(120, 90)
    assert torch.equal(sr.upscale(image, options), sr.upscale(image, options))


@pytest.mark.parametrize("keep", ["device", "host", "disk"])
def test_coding_in_strips_is_coding_whole(sr: StableSR, keep: str) -> None:
    autoencoder = sr.networks.autoencoder
    image = (image_of(264, 200) * 2 - 1).to(CUDA)
    with torch.inference_mode():
        whole = autoencoder.encode(image)
        strips = StripConfig(height=24, keep=keep)  # type: ignore[arg-type]  # a Literal
        with encode(autoencoder, image.cpu(), strips) as output:
            assert relative_error(output.moments.cpu(), whole.moments.cpu()) < 1e-5
            latent = torch.randn_like(latent_of(autoencoder, whole.moments))
            for fidelity in (0.0, 1.0):
                reference = autoencoder.decode(latent, whole.features, torch.tensor(fidelity))
                features = output.features if fidelity else ()
                result = decode(autoencoder, latent, features, fidelity, strips)
                assert relative_error(result.cpu(), reference.cpu()) < 1e-5


def test_tiles_of_one_call_are_predicted_as_alone(sr: StableSR) -> None:
    channels = sr.networks.config.unet.in_channels
    tiles = torch.randn(2, 5, channels, 64, 64)
    requests = [
        StepRequest(tiles[0, i : i + 1], tiles[1, i : i + 1], t, None, 0, 1)
        for i, t in enumerate((999, 500, 1, 250, 0))
    ]
    together = torch.cat(sr.predict(requests))
    alone = torch.cat([sr.predict([request])[0] for request in requests])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


# torch's own compiler warns of parts of torch that are going to be dropped.
@pytest.mark.filterwarnings("default::DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_compiled_calls_of_any_size_and_thread_give_what_eager_ones_give(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    eager = StableSR.from_preset("tiny", CUDA, dtype)
    quick = StableSR.from_preset("tiny", CUDA, dtype, compiling=CompileOptions("on", tmp_path))
    for step in quick.denoiser.compilations(2, 64):
        step()
    channels = eager.networks.config.unet.in_channels
    tiles = torch.randn(2, 4, channels, 64, 64)

    def request(n: int, t: int) -> list[StepRequest]:
        return [StepRequest(tiles[0, :n], tiles[1, :n], t, None, 0, 1)]

    asked = list(itertools.product((1, 2), (999, 400, 3))) * 3
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda nt: quick.predict(request(*nt))[0].clone(), asked))
    assert not quick.fallbacks
    for (n, t), got in zip(asked, found, strict=True):
        [wanted] = eager.predict(request(n, t))
        error = float((got - wanted).norm() / wanted.norm())
        assert error < (1e-4 if dtype == torch.float32 else 3e-2), (n, t, error)


@pytest.mark.filterwarnings("default::DeprecationWarning")
@pytest.mark.parametrize("fidelity", [0.0, 0.5])
def test_an_image_of_a_single_tile_is_the_same_whole_and_in_strips(
    sr: StableSR, fidelity: float, tmp_path: Path
) -> None:
    image, options = (
        image_of(128, 128),
        narrow.parameters(steps=FEW, fidelity_weight=fidelity, seed=4),
    )
    wanted = sr.upscale(image, options)
    made = StableSR.from_preset("tiny", CUDA, compiling=CompileOptions("on", tmp_path))
    for _ in range(2):
        found = made.upscale(image, options)
        assert float((found - wanted).abs().max()) < 2 / 255
        assert float((found - wanted).abs().mean()) < 2e-4
    assert not made.fallbacks


def test_half_precision_is_close_to_float32(sr: StableSR) -> None:
    half = StableSR.from_preset("tiny", CUDA, torch.bfloat16)
    options = narrow.parameters(steps=FEW, fidelity_weight=1.0)
    image = image_of(128, 128)
    assert float((half.upscale(image, options) - sr.upscale(image, options)).abs().mean()) < 0.01


def test_memory_that_runs_out_halves_the_plan_and_the_image_is_the_same(sr: StableSR) -> None:
    image, options = image_of(512, 512), narrow.parameters(steps=1, fidelity_weight=1.0)
    wanted = sr.upscale(image, options)
    before = sr.fallbacks.total()
    # Planned with all that the GPU has; then there is not enough of it.
    with sr.prepare(image, options) as prepared:
        [latent] = drive_all([sr.sample(prepared, options)], sr.predict, max_tiles=1)
        gc.collect()
        torch.cuda.empty_cache()
        taken = torch.cuda.memory_reserved() + 120 * 2**20
        total = torch.cuda.get_device_properties(CUDA).total_memory
        torch.cuda.set_per_process_memory_fraction(taken / total)
        got = sr.decode(prepared, latent, options)
    assert sr.fallbacks.total() > before
    assert float((got - wanted).abs().max()) < 2 / 255


def test_a_network_call_that_runs_out_of_memory_is_halved(sr: StableSR) -> None:
    image, options = image_of(384, 384), narrow.parameters(steps=1, fidelity_weight=0.0)
    wanted = sr.upscale(image, options)
    small = StableSR.from_preset("tiny", CUDA, budget=MemoryBudget(tile_batch=64))
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_allocated() + 220 * 2**20) / total
    )
    got = small.upscale(image, options)
    assert small.fallbacks
    assert float((got - wanted).abs().max()) < 2 / 255


def test_parts_take_turns_on_the_device_and_the_image_is_the_same(sr: StableSR) -> None:
    image, options = image_of(100, 80), narrow.parameters(steps=2)
    turns = StableSR.from_preset("tiny", CUDA, budget=MemoryBudget(offload=True))
    assert next(turns.networks.unet.parameters()).device.type == "cpu"
    got = turns.upscale(image, options)
    assert float((got - sr.upscale(image, options)).abs().max()) < 1 / 255


def test_full_size_networks_in_bfloat16_give_numbers() -> None:
    full = StableSR.load(ModelConfig(), PRESETS["stablesr-512"], CUDA, torch.bfloat16)
    result = full.upscale(image_of(128, 128), narrow.parameters(steps=2, fidelity_weight=1.0))
    assert tuple(result.shape) == (1, 3, 512, 512)
    assert bool(torch.isfinite(result).all())
