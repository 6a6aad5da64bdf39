"""Fused networks against those before, and where they are used: loaded, in strips, offloaded."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.checkpoints.folder import save_folder
from models.fusing import fuse
from models.fusing.layers import PhaseUpsample, TimeTable
from models.memory import MemoryBudget
from models.networks.autoencoder import Autoencoder
from models.networks.bundle import Networks
from models.networks.layers import PixelAttention
from models.offload import Offload
from models.pipeline import StableSR
from models.strips import Callbacks, StripConfig, decode
from tests.models import narrow
from tests.models.fusing import small
from tests.parity import FUSED_CASES, Golden, comparisons

TOLERANCE = 1e-12
GOLDEN = Path(__file__).parents[1] / "golden"
# Latent pixels of a tile: the UNet's are multiples of 8.
SIZES = [(8, 8), (8, 24), (24, 16), (40, 8)]


@pytest.fixture(scope="module")
def plain() -> Networks:
    return small.build()


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


@torch.inference_mode()
def test_a_prediction_is_the_same(plain: Networks) -> None:
    fused = fuse(small.build())
    for height, width in SIZES:
        noisy, lr = random_tensor(2, 3, 4, height, width)
        for context in (None, random_tensor(3, 5, 12, seed=1)):
            arguments = (noisy, lr, [0, 487, 999], context)
            ours, reference = fused.predict(*arguments), plain.predict(*arguments)
            assert error(ours, reference) < TOLERANCE


@torch.inference_mode()
def test_an_image_is_encoded_and_decoded_the_same(plain: Networks) -> None:
    fused = fuse(small.build()).autoencoder
    for height, width in ((1, 1), (3, 5), (8, 7)):
        image = random_tensor(1, 3, 8 * height, 8 * width)
        w = torch.tensor(0.7, dtype=torch.float64)
        reference = plain.autoencoder.encode(image)
        ours = fused.encode(image)
        assert error(ours.moments, reference.moments) < TOLERANCE
        latent = random_tensor(1, 4, height, width, seed=1)
        for features, fidelity in ((None, None), (reference.features, w)):
            expected = plain.autoencoder.decode(latent, features, fidelity)
            assert error(fused.decode(latent, features, fidelity), expected) < TOLERANCE


@torch.inference_mode()
def test_the_first_stage_is_fused_as_well() -> None:
    networks = small.build()
    networks.first_stage = copy.deepcopy(networks.autoencoder)
    fuse(networks)
    for part in (networks.autoencoder, networks.first_stage):
        assert isinstance(part, Autoencoder)
        layers = [m for m in part.modules() if isinstance(m, PhaseUpsample)]
        assert len(layers) == len(part.config.widths) - 1


@torch.inference_mode()
def test_tiles_with_and_without_a_prompt_do_not_mix(plain: Networks) -> None:
    fused = fuse(small.build())
    noisy, lr = random_tensor(2, 2, 4, 8, 8)
    prompt = random_tensor(1, 3, 12, seed=1)
    both = fused.predict(noisy, lr, [9, 9], torch.cat([fused.context, prompt]))
    assert error(both[:1], plain.predict(noisy[:1], lr[:1], [9], None)) < TOLERANCE
    assert error(both[1:], plain.predict(noisy[1:], lr[1:], [9], prompt)) < TOLERANCE
    assert error(both[1:], plain.predict(noisy[1:], lr[1:], [9], None)) > 1e-4


@torch.inference_mode()
def test_every_timestep_has_its_row(plain: Networks) -> None:
    fused = fuse(small.build())
    tile = random_tensor(1, 4, 8, 8)
    for timestep in (0, 1, 250, 998, 999):
        ours = fused.encoder(tile, torch.tensor([timestep]))
        reference = plain.encoder(tile, torch.tensor([timestep]))
        assert max(error(a, b) for a, b in zip(ours, reference, strict=True)) < TOLERANCE
    table = fused.unet.time_embedding
    assert isinstance(table, TimeTable)
    assert len(table.rows) == 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_a_low_precision_is_as_close_to_the_exact_result_as_unfused(
    plain: Networks, dtype: torch.dtype
) -> None:
    noisy, lr = random_tensor(2, 2, 4, 8, 16)
    reference = plain.predict(noisy, lr, [100, 900], None)
    arguments = (noisy.to(dtype), lr.to(dtype), [100, 900], None)
    unfused, fused = small.build(dtype), fuse(small.build(dtype))
    assert {p.dtype for p in fused.parameters()} == {dtype}
    ours = error(fused.predict(*arguments).double(), reference)
    assert ours < 1.5 * error(unfused.predict(*arguments).double(), reference)


def test_layers_that_were_fused_are_dropped() -> None:
    networks = fuse(small.build())
    names = {name.rpartition(".")[2] for name, _ in networks.named_modules()}
    assert not names & {"shared", "gamma", "beta", "linear_1"}
    for attention in networks.encoder.modules():
        if isinstance(attention, PixelAttention):
            assert dict(attention.named_children()).keys() == {"group_norm", "to_out", "to_qkv"}
    assert list(networks.buffers()) == []
    assert not any(p.requires_grad or p.is_inference() for p in networks.parameters())


def test_22_first_and_44_other_convolutions_become_26() -> None:
    networks = small.build()
    before = sum(".modulation." in name for name, m in networks.named_modules() if is_conv(m))
    unet = fuse(networks).unet
    assert unet.level_convs is not None
    after = sum(name.endswith("modulation") for name, _ in unet.named_modules())
    assert (before, after, len(unet.level_convs)) == (66, 22, 4)


def is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def test_the_golden_figures_of_the_networks_are_reproduced_by_fused_networks() -> None:
    """`python -m tests.parity --fuse` takes the samplers and whole images too."""
    golden = Golden(GOLDEN, fused=True)
    assert isinstance(golden.networks.unet.time_embedding, TimeTable)
    results = list(comparisons(golden, FUSED_CASES))
    assert [r for r in results if not r.ok] == []
    assert len(results) == 18


@pytest.mark.parametrize("rows", [1, 3, 8, 64])
@torch.inference_mode()
def test_the_decoder_in_strips_gives_the_whole_decoders_image(rows: int) -> None:
    plain, fused = small.build().autoencoder, fuse(small.build()).autoencoder
    latent = torch.randn(1, 4, 5, 3, dtype=torch.float64)
    ours = decode(fused, latent, (), 0, StripConfig(rows))
    torch.testing.assert_close(ours, plain.decode(latent).float(), rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_progress_ends_at_1_although_there_is_less_to_compute() -> None:
    fractions: list[float] = []
    callbacks = Callbacks(fractions.append)
    fused, latent = fuse(small.build()).autoencoder, torch.randn(1, 4, 5, 3, dtype=torch.float64)
    decode(fused, latent, (), 0, StripConfig(8), callbacks=callbacks)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_a_folder_is_fused_when_loaded_unless_fuse_is_false(tmp_path: Path) -> None:
    save_folder(small.build(), tmp_path, torch.float32)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    results: list[torch.Tensor] = []
    for sr in (
        StableSR.load(tmp_path, narrow.PRESET),
        StableSR.load(tmp_path, narrow.PRESET, fuse=False),
    ):
        assert isinstance(sr.networks.unet.time_embedding, TimeTable) == (not results)
        results.append(sr.upscale(image, narrow.parameters(seed=3)))
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


def test_offload_moves_everything_that_fuse_adds() -> None:
    sr = StableSR.load(narrow.CONFIG, narrow.PRESET, budget=MemoryBudget(offload=True))
    before = {name: p.clone() for name, p in sr.networks.named_parameters()}
    offload = Offload(sr.networks, torch.device("meta"))
    with offload.on_device("denoiser"):
        for part in (sr.networks.unet, sr.networks.encoder):
            assert {p.device.type for p in part.parameters()} == {"meta"}
            assert list(part.buffers()) == []
    with offload.on_device("autoencoder"):
        assert {p.device.type for p in sr.networks.autoencoder.parameters()} == {"meta"}
        for name, parameter in sr.networks.unet.named_parameters(prefix="unet"):
            assert torch.equal(parameter, before[name])


@torch.inference_mode()
def test_without_fidelity_nothing_is_fused_and_no_features_are_kept() -> None:
    """w = 0: the encoder's features are not kept, and the decoder does not look for any."""
    sr = StableSR.load(narrow.CONFIG, narrow.PRESET)
    options = narrow.parameters(fidelity_weight=0, steps=1)
    fusion = sr.networks.autoencoder.decoder.fusion
    assert fusion is not None
    for layer in fusion.children():
        layer.register_forward_hook(lambda *_: pytest.fail("a fusion layer was called"))
    with sr.prepare(torch.rand(1, 3, 16, 16), options) as prepared:
        assert prepared.encoding.features == ()
        assert prepared.encoding.nbytes == 0
        assert sr.decode(prepared, prepared.latent, options).isfinite().all()
