"""Convolutions in another basis, against the convolutions that they were."""

from __future__ import annotations

import copy
from typing import TypeGuard

import pytest
import torch
from torch import Tensor, nn

import models.fusing.winograd
from models.fusing import for_inference, fuse
from models.fusing.winograd import WinogradConv2d, is_worthwhile, use_winograd
from models.memory import Memory, MemoryBudget
from models.plan import Planner
from models.presets import get_preset
from models.strips import StripConfig, decode, encode
from tests.models.compiler import Tracer
from tests.models.fusing import small

TOLERANCE = 1e-12
CPU = torch.device("cpu")


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).norm() / reference.norm())


def conv(inputs: int, outputs: int, *, bias: bool = True, seed: int = 0) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias, dtype=torch.float64)
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = random_tensor(*parameter.shape, seed=seed + number)
    return layer


@pytest.fixture
def all_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even of the small networks."""
    monkeypatch.setattr(models.fusing.winograd, "_LEAST_CHANNELS", 1)


@pytest.fixture(params=[2, 4], ids=["2x2", "4x4"])
def results(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The side of what a square gives."""
    most = 0 if request.param == 2 else 2**20
    monkeypatch.setattr(models.fusing.winograd, "_MANY_PAIRS", most)
    return int(request.param)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sides", [(1, 1), (1, 9), (4, 4), (5, 7), (8, 16), (13, 2)])
@torch.inference_mode()
def test_a_map_of_any_sides_is_convolved_the_same(
    results: int, sides: tuple[int, int], bias: bool
) -> None:
    plain = conv(3, 5, bias=bias)
    ours = WinogradConv2d(plain)
    assert ours.results == results
    x = random_tensor(2, 3, *sides)
    assert error(ours(x), plain(x)) < TOLERANCE
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours(last), ours(x))


@pytest.mark.parametrize("height", [3, 4, 9])
@torch.inference_mode()
def test_rows_that_are_only_read_give_no_results(results: int, height: int) -> None:
    plain, x = conv(3, 5), random_tensor(1, 3, height, 6)
    reference = plain(x)[:, :, 1:-1]
    assert error(WinogradConv2d(plain).rows(x, padding=0), reference) < TOLERANCE


@torch.inference_mode()
def test_a_large_map_is_computed_in_bands_with_the_same_result(
    results: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, x = WinogradConv2d(conv(3, 5)), random_tensor(2, 3, 23, 10)
    whole = ours(x)
    heights: list[int] = []
    read = models.fusing.winograd._squares

    def watch(rows: Tensor, *basis: Tensor) -> Tensor:
        heights.append(rows.shape[1] - 2)
        return read(rows, *basis)

    monkeypatch.setattr(models.fusing.winograd, "_squares", watch)
    monkeypatch.setattr(models.fusing.winograd, "_BAND_BYTES", 4000)
    assert error(ours(x), whole) < TOLERANCE
    assert len(heights) > 3
    # No band is much smaller than the others.
    assert max(heights) - min(heights) <= results


@torch.inference_mode()
def test_float32_is_as_near_to_the_exact_result_as_the_convolution_within_a_few_times() -> None:
    """Of a layer as wide as full-size ones."""
    plain = conv(320, 320)
    plain.weight.data /= 3 * 320**0.5
    x = random_tensor(1, 320, 16, 16)
    reference = plain(x)
    ours = WinogradConv2d(plain).float()(x.float()).double()
    own = plain.float()(x.float()).double()
    assert error(ours, reference) < 3e-6
    assert error(ours, reference) < 20 * error(own, reference)


@pytest.mark.usefixtures("all_widths")
@torch.inference_mode()
def test_networks_give_the_same_fused_or_not() -> None:
    plain = small.build()
    noisy, lr = random_tensor(2, 2, 4, 8, 24)
    image, w = random_tensor(1, 3, 40, 24, seed=1), torch.tensor(0.7, dtype=torch.float64)
    reference = plain.predict(noisy, lr, [3, 700], None)
    encoded = plain.autoencoder.encode(image)
    latent = encoded.moments[:, :4]
    decoded = plain.autoencoder.decode(latent, encoded.features, w)
    for ours in (small.build(), fuse(small.build())):
        use_winograd(ours)
        assert count(ours) > 100
        assert error(ours.predict(noisy, lr, [3, 700], None), reference) < TOLERANCE
        output = ours.autoencoder.encode(image)
        assert error(output.moments, encoded.moments) < TOLERANCE
        assert error(ours.autoencoder.decode(latent, output.features, w), decoded) < TOLERANCE


def count(part: nn.Module) -> int:
    return sum(isinstance(m, WinogradConv2d) for m in part.modules())


@pytest.mark.usefixtures("all_widths")
@pytest.mark.parametrize("rows", [1, 3, 8, 64])
@torch.inference_mode()
def test_an_image_goes_in_strips_as_it_does_whole(rows: int) -> None:
    plain, ours = small.build(), fuse(small.build())
    use_winograd(ours)
    image = random_tensor(1, 3, 40, 24).float()
    strips, double = StripConfig(rows), torch.float64
    reference = plain.autoencoder.encode(image.double())
    with encode(ours.autoencoder, image, strips) as output:
        torch.testing.assert_close(output.moments, reference.moments.float(), rtol=1e-5, atol=1e-5)
        latent = reference.moments[:, :4]
        result = decode(ours.autoencoder, latent, output.features, 0.7, strips)
    expected = plain.autoencoder.decode(latent, reference.features, torch.tensor(0.7, dtype=double))
    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-5)


def test_only_wide_convolutions_without_stride_change_their_basis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models.fusing.winograd, "_LEAST_CHANNELS", 16)
    networks = small.build()
    original = copy.deepcopy(networks)
    use_winograd(networks)
    for name, module in original.named_modules():
        result = networks.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            wide = min(module.in_channels, module.out_channels) >= 16
            plain = module.kernel_size == (3, 3) and module.stride == (1, 1)
            assert isinstance(result, WinogradConv2d) == (wide and plain), name
    before = {name: p.clone() for name, p in networks.named_parameters()}
    use_winograd(networks)
    assert all(torch.equal(p, before[name]) for name, p in networks.named_parameters())
    assert not any(p.requires_grad or p.is_inference() for p in networks.parameters())


@pytest.mark.usefixtures("all_widths")
@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", torch.float32, True),
        ("cpu", torch.bfloat16, False),
        ("cuda", torch.float32, False),
        ("cuda", torch.bfloat16, False),
    ],
)
def test_it_is_for_float32_on_processors(device: str, dtype: torch.dtype, expected: bool) -> None:
    place = torch.device(device)
    assert is_worthwhile(place, dtype) == expected
    networks = small.build(dtype)
    for_inference(networks, place, dtype, lambda: 2**30)
    assert (count(networks) > 0) == expected


def grown(part: nn.Module) -> int:
    """Bytes that the kernels have become larger by."""
    return sum(
        8 * (m.weight.numel() - 9 * m.in_channels * m.out_channels)
        for m in part.modules()
        if isinstance(m, WinogradConv2d)
    )


@pytest.mark.usefixtures("all_widths")
def test_convolutions_that_there_is_no_room_for_stay_as_they_are_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    all_, some = small.build(), small.build()
    use_winograd(all_)
    rest = grown(all_.unet) // 2
    room = grown(all_) - grown(all_.unet) + rest
    use_winograd(some, room=room)
    # All of the others, and of the UNet what has the fewest channels.
    assert count(some.autoencoder) == count(all_.autoencoder)
    assert count(some.encoder) == count(all_.encoder)
    assert 0 < count(some.unet) < count(all_.unet)
    assert 0.9 * room < grown(some) <= room
    fast = [m for m in some.unet.modules() if isinstance(m, WinogradConv2d)]
    slow = [m for m in some.unet.modules() if is_wide(m)]
    assert max(m.in_channels * m.out_channels for m in fast) <= min(
        m.in_channels * m.out_channels for m in slow
    )
    [message] = caplog.messages
    assert message.startswith(
        f"{len(slow)} of {count(all_)} wide convolutions are computed as they"
    )


def is_wide(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether Winograd's algorithm is for it."""
    return (
        isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.stride == (1, 1)
    )


@pytest.mark.parametrize("padding", [0, 1])
def test_to_the_compiler_a_convolution_is_one_operator(results: int, padding: int) -> None:
    ours = WinogradConv2d(conv(3, 5))
    tracer, x = Tracer(), random_tensor(2, 3, 23, 10)

    def run(x: Tensor) -> tuple[Tensor]:
        return (ours.rows(x, padding=padding),)

    assert torch.equal(tracer(run)(x)[0], run(x)[0])
    [graph] = tracer.graphs
    assert [n.op for n in graph.graph.nodes].count("call_function") == 1
    arguments = x, ours.weight, ours.forth, ours.back, ours.bias, padding
    torch.library.opcheck(models.fusing.winograd._operator, arguments)


def test_an_estimate_counts_the_kernels_as_they_will_be(caplog: pytest.LogCaptureFixture) -> None:
    def weights(gigabytes: int, dtype: torch.dtype = torch.float32) -> int:
        memory, preset = Memory(0, gigabytes * 10**9, 0), get_preset("stablesr-512")
        return sum(Planner.of_preset(preset, dtype, CPU, MemoryBudget(), memory).weights)

    plain = 2 * weights(64, torch.bfloat16)
    assert not caplog.messages
    all_, some = weights(64), weights(8)
    assert 1.8 < all_ / plain < 2.2
    assert plain < some < all_
    [message] = caplog.messages
    assert "wide convolutions are computed as they are" in message
