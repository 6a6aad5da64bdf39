"""Colours by ICC profiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pyvips
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests.worker.image_files import file_of, gradient, grey_profile, ramp16, tiff_of
from tests.worker.images.levels import levels, levels16
from worker.images import decode

LIMIT = 1_000_000
INTENT: dict[str, Any] = {"intent": "relative", "black_point_compensation": True}


def vips_profile(name: str) -> bytes:
    """One of the profiles that libvips has built in: p3, cmyk or srgb."""
    black = pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb")
    profile = black.icc_transform(name, input_profile="srgb").get("icc-profile-data")
    assert isinstance(profile, bytes)
    return profile


def test_inks_are_converted_by_their_profile() -> None:
    profile = vips_profile("cmyk")
    colours = np.array([[[200, 120, 60], [90, 110, 70], [60, 90, 140]]], np.uint8)
    image = pyvips.Image.new_from_array(colours, interpretation="srgb")
    inks = image.icc_transform("cmyk", input_profile="srgb", depth=16, **INTENT)
    stored = tiff_of(inks.numpy().tobytes(), 3, 1, photometric=5, bits=(16,) * 4)
    plain = levels(decode(stored, LIMIT))
    found = levels(decode(_labelled(inks, profile).tiffsave_buffer(), LIMIT))
    assert np.abs(found.astype(int) - colours).max() <= 3
    assert np.abs(plain.astype(int) - colours).max() > 20


def _labelled(image: pyvips.Image, profile: bytes) -> pyvips.Image:
    blob: Any = profile  # the stub leaves out that a blob is bytes
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", blob)
    return image


# Linear light of Display P3's primaries in sRGB's (from their chromaticities, both with D65).
P3_TO_SRGB = np.array(
    [
        [1.2249401, -0.2249404, 0.0000001],
        [-0.0420569, 1.0420571, 0.0000000],
        [-0.0196376, -0.0786361, 1.0982735],
    ]
)


def linear(encoded: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def encoded(light: NDArray[np.float64]) -> NDArray[np.float64]:
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("bits", [8, 16])
def test_display_p3_is_converted_to_srgb(bits: int) -> None:
    top = 2**bits - 1
    p3 = np.array([[0.784, 0.392, 0.196], [0.5, 0.5, 0.5], [0.2, 0.6, 0.3], [1, 1, 1]])
    values = np.rint(p3 * top).astype(np.uint8 if bits == 8 else np.uint16)
    image = pyvips.Image.new_from_array(
        values[None], interpretation="srgb" if bits == 8 else "rgb16"
    )
    found = decode(_labelled(image, vips_profile("p3")).pngsave_buffer(), LIMIT)
    wanted = encoded(linear(values / top) @ P3_TO_SRGB.T)
    assert np.abs(found.rgb[0, :, 0].T.numpy() - wanted).max() * 255 < 1.5
    assert found.depth == bits


def test_colours_are_converted_from_the_files_profile_to_srgb() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile in which the first channel is blue and the third is red.
    swapped = srgb.replace(b"rXYZ", b"____", 1).replace(b"bXYZ", b"rXYZ", 1)
    swapped = swapped.replace(b"____", b"bXYZ", 1)
    values = np.zeros((4, 4, 4), np.uint8)
    values[..., 0], values[..., 3] = 255, 99
    image = decode(file_of(Image.fromarray(values), icc_profile=swapped), LIMIT)
    assert levels(image)[0, 0].tolist() == [0, 0, 255]
    assert image.alpha is not None
    assert torch.equal(image.alpha, torch.full((1, 1, 4, 4), 99 / 255))


def test_an_srgb_profile_changes_nothing_that_can_be_seen() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = decode(file_of(Image.fromarray(gradient()), icc_profile=profile), LIMIT)
    assert np.array_equal(levels(image), gradient())


def test_an_srgb_profile_costs_16_bits_nothing() -> None:
    values = ramp16(3)
    image = pyvips.Image.new_from_array(values, interpretation="rgb16")
    for profile in (
        vips_profile("srgb"),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        data = _labelled(image, profile).tiffsave_buffer()
        assert np.array_equal(levels16(decode(data, LIMIT)), values)


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_levels_are_converted_by_their_profile_and_stay_grey(bits: int) -> None:
    top = 2**bits - 1
    values = np.array([[0, top // 4, top // 2, top]]).astype(np.uint8 if bits == 8 else np.uint16)
    source = pyvips.Image.new_from_array(values, interpretation="b-w" if bits == 8 else "grey16")
    image = decode(_labelled(source, grey_profile(1.0)).tiffsave_buffer(), LIMIT)
    assert image.grey
    assert torch.equal(image.rgb[0, 0], image.rgb[0, 2])
    wanted = encoded(values[0] / top)
    assert np.abs(image.rgb[0, 0, 0].numpy() - wanted).max() * 255 < 0.5


def test_a_profile_that_is_damaged_or_for_other_colours_is_ignored() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    broken = srgb[:300] + bytes(len(srgb) - 300)
    for profile in (b"nonsense", broken, grey_profile(1.0), vips_profile("cmyk")):
        for format in ("PNG", "TIFF"):
            data = file_of(Image.fromarray(gradient()), format, icc_profile=profile)
            assert np.array_equal(levels(decode(data, LIMIT)), gradient())
