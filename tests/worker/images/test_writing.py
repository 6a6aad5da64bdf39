"""What is written can be read again, whole or not at all, and says nothing but its pixels."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor
from torch.nn.functional import interpolate

from jobs.errors import OutputTooLarge
from jobs.image_file import MAX_TIFF_PIXELS, RESULT_TYPES
from models.parameters import LOSSY, Alpha, OutputFormat
from tests.worker.image_files import file_of, gradient, ramp16, tiff_of
from worker.images import DecodedImage, Depth, check_side, decode, decoding, rows_of, write
from worker.images.decoding import fill_hidden

LIMIT = 1_000_000
ORANGE = torch.tensor([1.0, 0.6, 0.2])[:, None, None]
EVERY: tuple[OutputFormat, ...] = ("png", "webp", "jpeg", "tiff", "avif")
LOSSLESS: tuple[OutputFormat, ...] = ("png", "tiff")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "result.part"


def written(
    path: Path, pixels: Tensor, format: OutputFormat, depth: Depth = 8, *, strip: int = 50
) -> bytes:
    """The file of a (C, H, W) image that comes in strips."""
    channels, height, width = pixels.shape
    rows = (pixels[:, top : top + strip] for top in range(0, height, strip))
    write(path, rows, width=width, height=height, channels=channels, format=format, depth=depth)
    return path.read_bytes()


def planes(image: DecodedImage) -> Tensor:
    """(C, H, W), the opacity last."""
    colours = image.rgb[0, :1] if image.grey else image.rgb[0]
    return colours if image.alpha is None else torch.cat([colours, image.alpha[0]])


def smooth(channels: int, height: int = 48, width: int = 64) -> Tensor:
    across = torch.linspace(0, 1, width).expand(height, width)
    down = torch.linspace(1, 0.2, height)[:, None].expand(height, width)
    return torch.stack([across, across.flip(1), down, down][:channels])


def metadata(data: bytes) -> dict[str, Any]:
    with Image.open(io.BytesIO(data)) as image:
        assert not image.getexif().get_ifd(0x8769)
        return {"mode": image.mode, "profile": image.info.get("icc_profile")}


@pytest.mark.parametrize("strip", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_files_give_back_every_level(
    path: Path, format: OutputFormat, depth: Depth, channels: int, strip: int
) -> None:
    height, width, top = 130, 9, 2**depth - 1
    count = channels * height * width
    levels = torch.arange(count).mul(2654435761).remainder(top + 1)
    levels = levels.reshape(channels, height, width)
    if channels in (2, 4):
        levels[-1].clamp_(min=1)  # what is hidden may change
    data = written(path, levels / top, format, depth, strip=strip)
    image = decode(data, LIMIT)
    assert (image.channels, image.depth, image.size) == (channels, depth, (width, height))
    assert torch.equal((planes(image) * top).round().long(), levels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format", LOSSLESS)
def test_another_reader_sees_the_same_levels(
    path: Path, format: OutputFormat, channels: int
) -> None:
    levels = torch.arange(channels * 35).remainder(256).reshape(channels, 5, 7)
    written(path, levels / 255, format)
    with Image.open(path) as image:
        found = np.asarray(image).reshape(5, 7, channels)
    assert np.array_equal(found, levels.permute(1, 2, 0).numpy())


def test_a_16_bit_gradient_survives_reading_writing_and_reading(path: Path) -> None:
    values = ramp16(3)
    source = tiff_of(values.tobytes(), 21, 13, photometric=2, bits=(16, 16, 16))
    first = decode(source, LIMIT)
    for format in LOSSLESS:
        again = decode(written(path, planes(first), format, 16), LIMIT)
        assert (again.rgb - first.rgb).abs().max() < 0.01 / 65535


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format", EVERY)
def test_every_output_format_is_one_that_is_read(
    path: Path, format: OutputFormat, channels: int
) -> None:
    pixels = smooth(channels)
    image = decode(written(path, pixels, format), LIMIT)
    wanted = pixels
    if format == "jpeg" and channels in (2, 4):
        wanted = pixels[:-1] * pixels[-1:] + 1 - pixels[-1:]
    if format == "webp" and channels < 3:  # has no grey
        wanted = torch.cat([pixels[:1].expand(3, -1, -1), pixels[1:]])
    found = planes(image)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 0.05


@pytest.mark.parametrize("format", ["webp", "jpeg", "avif"])
def test_formats_of_8_bits_take_images_of_16(path: Path, format: OutputFormat) -> None:
    assert decode(written(path, smooth(3), format, 16), LIMIT).depth == 8


@pytest.mark.parametrize("format", sorted(LOSSY))
def test_less_quality_makes_a_smaller_file(path: Path, format: OutputFormat) -> None:
    pixels = noise(3, 64, 64)
    sizes = []
    for quality in (95, 40):
        sides: dict[str, Any] = {"width": 64, "height": 64, "channels": 3}
        write(path, [pixels], format=format, depth=8, quality=quality, **sides)
        sizes.append(path.stat().st_size)
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("depth", [8, 16])
def test_values_are_rounded_to_the_nearest_level_and_clamped(path: Path, depth: Depth) -> None:
    top = 2**depth - 1
    values = torch.tensor([-3 * top, 0.45, 0.55, top - 0.55, top - 0.45, 7 * top]) / top
    image = decode(written(path, values.expand(3, 1, 6), "png", depth), LIMIT)
    found = (image.rgb[0, 0, 0] * top).round().long().tolist()
    assert found == [0, 0, 1, top - 1, top, top]


def test_a_half_is_rounded_up(path: Path) -> None:
    values = torch.tensor([0.5, 1.5, 2.5]) / 255
    image = decode(written(path, values.expand(3, 1, 3), "png"), LIMIT)
    assert (image.rgb[0, 0, 0] * 255).round().tolist() == [1, 2, 3]


def test_transparent_pixels_are_white_in_a_jpeg(path: Path) -> None:
    image = decode(written(path, torch.zeros(4, 16, 16), "jpeg"), LIMIT)
    assert image.alpha is None
    assert image.rgb.min() > 0.99


def chunks(png: bytes) -> Iterator[str]:
    position = 8
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        yield kind.decode()
        position += 12 + length


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_says_that_it_is_srgb_and_nothing_else(path: Path, channels: int) -> None:
    found = list(chunks(written(path, smooth(channels), "png")))
    assert found[:2] == ["IHDR", "sRGB"]
    assert set(found[2:]) == {"IDAT", "IEND"}


@pytest.mark.parametrize("format", ["webp", "jpeg", "tiff"])
def test_other_coloured_results_carry_a_small_srgb_profile(
    path: Path, format: OutputFormat
) -> None:
    for channels in (3, 4):
        profile = metadata(written(path, smooth(channels), format))["profile"]
        assert len(profile) < 1000
        name = ImageCms.getProfileName(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        assert "sRGB" in name


@pytest.mark.parametrize("format", ["jpeg", "tiff"])
def test_grey_results_are_stored_grey_and_without_a_profile(
    path: Path, format: OutputFormat
) -> None:
    found = metadata(written(path, smooth(1), format))
    assert found == {"mode": "L", "profile": None}


@pytest.mark.parametrize("came", [0, 9, 11, 200])
@pytest.mark.parametrize("format", EVERY)
def test_rows_that_are_too_few_or_too_many_are_an_error(
    path: Path, format: OutputFormat, came: int
) -> None:
    with pytest.raises(ValueError, match="10 rows were announced"):
        write(
            path,
            [torch.zeros(3, came, 8)],
            width=8,
            height=10,
            channels=3,
            format=format,
            depth=8,
        )


def test_rows_of_another_shape_are_an_error(path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows must be \(3, 'n', 8\); got \(4, 10, 8\)"):
        write(
            path,
            [torch.zeros(4, 10, 8)],
            width=8,
            height=10,
            channels=3,
            format="png",
            depth=8,
        )


@pytest.mark.parametrize("format", EVERY)
def test_a_path_that_cannot_be_written_is_an_os_error(tmp_path: Path, format: OutputFormat) -> None:
    with pytest.raises(OSError, match="missing"):
        written(tmp_path / "missing" / "result.part", smooth(3), format)


@pytest.mark.parametrize("format", LOSSLESS)
def test_the_memory_of_a_streamed_file_does_not_grow_with_its_height(
    path: Path, format: OutputFormat
) -> None:
    def peak(height: int) -> int:
        strip = torch.zeros(3, 32, 512)
        tracemalloc.start()
        write(
            path,
            (strip for _ in range(height // 32)),
            width=512,
            height=height,
            channels=3,
            format=format,
            depth=16,
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(64)  # what is made once
    assert peak(2048) < 1.1 * peak(256)


def test_a_result_too_large_for_its_format_is_refused_before_it_is_computed(path: Path) -> None:
    check_side(16_383, 10, "webp")
    check_side(16_384, 10, "png")
    check_side(MAX_TIFF_PIXELS // 4, 4, "tiff")
    with pytest.raises(OutputTooLarge, match="webp file has at most 16383"):
        check_side(16_384, 10, "webp")
    with pytest.raises(OutputTooLarge, match="jpeg file has at most 65500"):
        check_side(10, 65_501, "jpeg")
    with pytest.raises(OutputTooLarge, match="4 GiB"):
        check_side(MAX_TIFF_PIXELS // 4 + 1, 4, "tiff")
    with pytest.raises(OutputTooLarge):
        write(path, [], width=16_384, height=1, channels=3, format="webp", depth=8)
    assert not path.exists()


def test_every_output_format_has_its_media_type() -> None:
    assert {format: f"image/{format}" for format in EVERY} == RESULT_TYPES


# Opacity beside the colours: upscaled in strips, and nothing hidden shows at its edges


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


@pytest.mark.parametrize("alpha", ["soft", "binary"])
def test_opacity_stays_binary_only_where_that_is_asked_for(alpha: Alpha) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 3:] = 1
    image = DecodedImage(torch.zeros(1, 3, 8, 8), mask)
    rows = torch.cat(list(rows_of(image, [torch.zeros(3, 32, 32)], 32, 32, alpha)), dim=1)
    values = set(rows[3].flatten().tolist())
    assert (values == {0.0, 1.0}) == (alpha == "binary")
    # The edge lies where it lay.
    assert (rows[3, 16] >= 0.5).tolist() == [x >= 12 for x in range(32)]
