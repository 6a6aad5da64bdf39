"""Every fuse, alone and all together, against the networks without it."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from models.fusing import FUSIONS, fuse
from models.fusing.times import TimeTable
from models.fusing.upsampling import PhaseUpsample
from models.networks.autoencoder import Autoencoder
from models.networks.bundle import Networks
from tests.models.fusing import small

TOLERANCE = 1e-12
CPU = torch.device("cpu")
EACH_AND_ALL = [*([name] for name in FUSIONS), list(FUSIONS)]
# Cells of a tile: the UNet's are multiples of 8.
SIZES = [(8, 8), (8, 24), (24, 16), (40, 8)]


@pytest.fixture(scope="module")
def plain() -> Networks:
    return small.made()


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(ours: Tensor, right: Tensor) -> float:
    return float((ours - right).norm() / right.norm())


@pytest.mark.parametrize("names", EACH_AND_ALL, ids="+".join)
@torch.inference_mode()
def test_a_prediction_is_the_same(plain: Networks, names: list[str]) -> None:
    fused = fuse(small.made(), names)
    for height, width in SIZES:
        noisy, lr = drawn(2, 3, 4, height, width)
        for context in (None, drawn(3, 5, 12, seed=1)):
            arguments = (noisy, lr, [0, 487, 999], context)
            ours, right = fused.predict(*arguments), plain.predict(*arguments)
            assert error(ours, right) < TOLERANCE


@pytest.mark.parametrize("names", EACH_AND_ALL, ids="+".join)
@torch.inference_mode()
def test_an_image_is_encoded_and_decoded_the_same(plain: Networks, names: list[str]) -> None:
    fused = fuse(small.made(), names).autoencoder
    for height, width in ((1, 1), (3, 5), (8, 7)):
        image, w = drawn(1, 3, 8 * height, 8 * width), torch.tensor(0.7, dtype=torch.float64)
        right = plain.autoencoder.encode(image)
        ours = fused.encode(image)
        assert error(ours.moments, right.moments) < TOLERANCE
        latent = drawn(1, 4, height, width, seed=1)
        for features, fidelity in ((None, None), (right.features, w)):
            wanted = plain.autoencoder.decode(latent, features, fidelity)
            assert error(fused.decode(latent, features, fidelity), wanted) < TOLERANCE


@torch.inference_mode()
def test_the_first_stage_is_folded_as_well() -> None:
    networks = small.made()
    networks.first_stage = copy.deepcopy(networks.autoencoder)
    fuse(networks)
    for part in (networks.autoencoder, networks.first_stage):
        assert isinstance(part, Autoencoder)
        found = [m for m in part.modules() if isinstance(m, PhaseUpsample)]
        assert len(found) == len(part.config.widths) - 1


@torch.inference_mode()
def test_the_order_of_folds_does_not_matter(plain: Networks) -> None:
    names = list(FUSIONS)
    noisy, lr = drawn(2, 2, 4, 8, 8)
    right = plain.predict(noisy, lr, [3, 700], None)
    for seed in range(3):
        random.Random(seed).shuffle(names)
        assert error(fuse(small.made(), names).predict(noisy, lr, [3, 700], None), right) < 1e-12


@torch.inference_mode()
def test_folding_again_changes_nothing() -> None:
    networks = fuse(small.made())
    before = {name: p.clone() for name, p in networks.named_parameters()}
    after = dict(fuse(networks).named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], values) for name, values in before.items())


@torch.inference_mode()
def test_tiles_with_and_without_a_prompt_do_not_mix(plain: Networks) -> None:
    fused = fuse(small.made())
    noisy, lr = drawn(2, 2, 4, 8, 8)
    prompt = drawn(1, 3, 12, seed=1)
    both = fused.predict(noisy, lr, [9, 9], torch.cat([fused.context, prompt]))
    assert error(both[:1], plain.predict(noisy[:1], lr[:1], [9], None)) < TOLERANCE
    assert error(both[1:], plain.predict(noisy[1:], lr[1:], [9], prompt)) < TOLERANCE
    assert error(both[1:], plain.predict(noisy[1:], lr[1:], [9], None)) > 1e-4


@torch.inference_mode()
def test_every_timestep_has_its_row(plain: Networks) -> None:
    fused = fuse(small.made(), ["times"])
    tile = drawn(1, 4, 8, 8)
    for timestep in (0, 1, 250, 998, 999):
        ours = fused.encoder(tile, torch.tensor([timestep]))
        right = plain.encoder(tile, torch.tensor([timestep]))
        assert max(error(a, b) for a, b in zip(ours, right, strict=True)) < TOLERANCE
    table = fused.unet.time_table
    assert isinstance(table, TimeTable)
    assert len(table.rows) == 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_a_low_precision_is_as_close_to_the_exact_result_as_without_folds(
    plain: Networks, dtype: torch.dtype
) -> None:
    noisy, lr = drawn(2, 2, 4, 8, 16)
    right = plain.predict(noisy, lr, [100, 900], None)
    arguments = (noisy.to(dtype), lr.to(dtype), [100, 900], None)
    unfused, fused = small.made(dtype), fuse(small.made(dtype))
    assert {p.dtype for p in fused.parameters()} == {dtype}
    ours = error(fused.predict(*arguments).double(), right)
    assert ours < 1.5 * error(unfused.predict(*arguments).double(), right)


def test_nothing_of_what_was_folded_is_kept() -> None:
    networks = fuse(small.made())
    names = {name.rpartition(".")[2] for name, _ in networks.named_modules()}
    assert not names & {"shared", "gamma", "beta", "time_embedding", "time_proj"}
    for part in (networks.unet, networks.encoder):
        assert not any(isinstance(m, Attention) for m in part.modules())
    assert list(networks.buffers()) == []
    assert not any(p.requires_grad or p.is_inference() for p in networks.parameters())


def test_22_first_and_44_other_convolutions_become_26() -> None:
    networks = small.made()
    before = sum(".modulation." in name for name, m in networks.named_modules() if is_conv(m))
    unet = fuse(networks, ["modulation"]).unet
    assert unet.joined is not None
    after = sum(name.endswith("modulation") for name, _ in unet.named_modules())
    assert (before, after, len(unet.joined)) == (66, 22, 4)


def is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)
