"""Opacity beside the colours: upscaled in strips, and nothing hidden shows at its edges."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from tests.worker.image_files import file_of, gradient
from worker.images import DecodedImage, decode, decoding, rows_of
from worker.images.decoding import fill_hidden

LIMIT = 1_000_000
ORANGE = torch.tensor([1.0, 0.6, 0.2])[:, None, None]


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((7, 5), (28, 20)), ((40, 30), (200, 75)), ((1, 1), (130, 3)), ((9, 4), (9, 4))],
)
def test_opacity_in_strips_is_the_opacity_resized_whole(
    size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    alpha = noise(1, 1, *size)
    image = DecodedImage(torch.zeros(1, 3, *size), alpha)
    rows = list(rows_of(image, [torch.zeros(3, *wanted)], *wanted))
    whole = interpolate(alpha, wanted, mode="bicubic", align_corners=False).clamp(0, 1)
    assert len(rows) == -(-wanted[0] // 64)
    assert torch.allclose(torch.cat(rows, dim=1)[3:], whole[0], atol=2e-6)


def test_rows_of_an_opaque_coloured_image_are_handed_on_as_they_are() -> None:
    rgb = noise(3, 4, 4)
    (rows,) = rows_of(DecodedImage(torch.zeros(1, 3, 2, 2)), [rgb], 4, 4)
    assert torch.equal(rows, rgb)


@pytest.mark.parametrize("strip", [1, 17, 64, 100, 160])
def test_colours_and_opacity_meet_whatever_the_strips(strip: int) -> None:
    alpha, rgb = noise(1, 1, 40, 10), noise(3, 160, 40)
    image = DecodedImage(torch.zeros(1, 3, 40, 10), alpha)
    rows = [rgb[:, top : top + strip] for top in range(0, 160, strip)]
    found = torch.cat(list(rows_of(image, rows, 160, 40)), dim=1)
    assert torch.equal(found[:3], rgb)
    whole = interpolate(alpha, (160, 40), mode="bicubic", align_corners=False).clamp(0, 1)
    assert torch.allclose(found[3:], whole[0], atol=2e-6)


def test_a_grey_image_takes_the_brightness_of_what_comes() -> None:
    image = DecodedImage(torch.zeros(1, 3, 2, 2), grey=True)
    colours = torch.tensor([[1.0, 0, 0, 0.3], [0, 1, 0, 0.3], [0, 0, 1, 0.3]])[:, None]
    (row,) = rows_of(image, [colours], 1, 4)
    assert torch.allclose(row, torch.tensor([[[0.2126, 0.7152, 0.0722, 0.3]]]))


def test_every_grey_level_of_16_bits_stays_the_same_level() -> None:
    image = DecodedImage(torch.zeros(1, 3, 2, 2), grey=True, depth=16)
    levels = torch.arange(65536)
    rows = rows_of(image, [(levels / 65535).expand(3, 1, -1)], 1, 65536)
    found = torch.cat(list(rows), dim=1)
    assert torch.equal((found[0, 0] * 65535 + 0.5).floor().long(), levels)


def test_grey_with_opacity_has_two_channels() -> None:
    image = DecodedImage(torch.zeros(1, 3, 2, 2), noise(1, 1, 2, 2), grey=True)
    (rows,) = rows_of(image, [noise(3, 8, 8)], 8, 8)
    assert rows.shape == (2, 8, 8)
    assert image.channels == 2


def disc(side: int = 64, *, edge: float) -> Image.Image:
    """Orange, transparent black around; its edge is `edge` pixels wide."""
    line = torch.arange(side) - (side - 1) / 2
    radius = torch.hypot(line[:, None], line[None])
    alpha = ((24 - radius) / edge + 0.5).clamp(0, 1).mul(255).round()
    colours = (ORANGE * 255).round() * (alpha > 0)
    pixels = torch.cat([colours, alpha[None]]).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


@pytest.mark.parametrize("edge", [1e-3, 1.0, 8.0])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_an_upscaled_disc_has_no_dark_edge_over_white(format: str, edge: float) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode(file_of(disc(edge=edge), format, **options), LIMIT)
    larger = interpolate(image.rgb, scale_factor=4, mode="bicubic").clamp(0, 1)
    found = torch.cat(list(rows_of(image, [larger[0]], 256, 256)), dim=1)
    colours, alpha = found[:3], found[3:]
    over_white = colours * alpha + 1 - alpha
    assert (over_white - (ORANGE * alpha + 1 - alpha)).abs().max() < 0.001


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (5, 7), (300, 11), (513, 3)])
def test_only_what_is_hidden_changes_and_takes_colours_from_around(size: tuple[int, int]) -> None:
    rgb, alpha = noise(1, 3, *size) * 0.2 + 0.4, (noise(1, 1, *size) > 0.7).float()
    before = rgb.clone()
    rgb[(alpha == 0).expand_as(rgb)] = 0
    fill_hidden(rgb, alpha)
    shown = (alpha > 0).expand_as(rgb)
    assert torch.equal(rgb[shown], before[shown])
    assert rgb.min() >= 0.4
    assert rgb.max() <= 0.6


def test_hidden_colours_come_from_nearby_and_not_from_afar() -> None:
    rgb, alpha = torch.zeros(1, 3, 64, 600), torch.ones(1, 1, 64, 600)
    rgb[:, 0, :, :300], rgb[:, 2, :, 300:] = 1, 1
    alpha[:, :, 20:40, 40:60] = alpha[:, :, 20:40, 540:560] = 0
    rgb[(alpha == 0).expand_as(rgb)] = 0
    fill_hidden(rgb, alpha)
    assert (rgb[0, 0, :, :250] == 1).all()
    assert (rgb[0, 2, :, 350:] == 1).all()


def test_filling_in_strips_leaves_no_seam() -> None:
    """The strips of 256 rows, against one strip that holds everything."""
    rgb, alpha = noise(1, 3, 1000, 8), torch.zeros(1, 1, 1000, 8)
    alpha[:, :, ::97] = 1
    tall = rgb.clone()
    fill_hidden(tall, alpha)
    whole = rgb.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "FILL_STRIP", 4096)
        fill_hidden(whole, alpha)
    assert torch.allclose(tall, whole, atol=1e-6)


@pytest.mark.parametrize("opacity", [0.0, 1.0])
def test_all_hidden_or_nothing_hidden_stays_as_it_is(opacity: float) -> None:
    rgb = noise(1, 3, 6, 6)
    before = rgb.clone()
    fill_hidden(rgb, torch.full((1, 1, 6, 6), opacity))
    assert torch.equal(rgb, before)


def test_nearly_transparent_pixels_keep_their_colours() -> None:
    values = gradient(channels=4)
    values[..., 3] = 1
    values[0, 0, 3] = 0
    image = decode(file_of(Image.fromarray(values)), LIMIT)
    found = (image.rgb[0].permute(1, 2, 0) * 255).round()
    wanted = torch.from_numpy(values[..., :3]).float()
    assert torch.equal(found[1:], wanted[1:])
    assert not torch.equal(found[0, 0], wanted[0, 0])
