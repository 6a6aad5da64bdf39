"""Pictures as people have them, sent to the real service and back: nothing of theirs is lost."""

from __future__ import annotations

import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from tests.cli.up import up
from tests.worker.image_files import file_of, png_of, tiff_of
from worker.images import DecodedImage, decode

# Whole processes that import torch; on a busy machine with two cores that takes its time.
pytestmark = pytest.mark.timeout(600)

WIDTH, HEIGHT, SCALE = 44, 40, 2.5
OUT = (110, 100)
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        up(tmp_path_factory.mktemp("data")) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=300) as client,
    ):
        yield client


def upscaled(service: httpx.Client, data: bytes, output_format: str) -> tuple[bytes, httpx.Headers]:
    """One step at full fidelity: quick, and near to the input."""
    form = {
        "preset": "tiny",
        "steps": "1",
        "seed": "1",
        "fidelity_weight": "1",
        "scale": str(SCALE),
        "output_format": output_format,
    }
    answer = service.post(
        "/upscale", data=form, files={"image": data}, headers={"Prefer": "wait=60"}
    )
    assert answer.status_code < 300, answer.text
    job = answer.json()
    while job["state"] in ("queued", "processing"):
        job = service.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=60"}).json()
    assert job["state"] == "succeeded", job
    assert (job["input"]["width"], job["input"]["height"]) == (WIDTH, HEIGHT)
    result = service.get(f"/jobs/{job['id']}/result")
    assert result.status_code == 200
    return result.content, result.headers


def colours(channels: int = 3) -> Tensor:
    """(C, H, W): smooth, each channel in a direction of its own."""
    across = torch.linspace(0.1, 0.9, WIDTH).expand(HEIGHT, WIDTH)
    down = torch.linspace(0.8, 0.2, HEIGHT)[:, None].expand(HEIGHT, WIDTH)
    return torch.stack([across, down, across.flip(1), down.flip(0)][:channels])


def levels(pixels: Tensor, top: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    return (pixels.permute(1, 2, 0) * top).round().numpy().astype(np.uint16)


def off(result: DecodedImage, source: Tensor) -> float:
    """The mean distance of a result's colours from its input's, bicubic, without fine detail."""
    wanted = interpolate(source[None], OUT[::-1], mode="bicubic").clamp(0, 1)
    return float((avg_pool2d(result.rgb, 8) - avg_pool2d(wanted, 8)).abs().mean())


def test_a_png_with_transparency_comes_back_with_it(service: httpx.Client) -> None:
    rgb = colours()
    alpha = torch.zeros(1, HEIGHT, WIDTH)
    alpha[:, 8:24, 12:36] = 1
    alpha[:, :, 20:30] *= 0.5
    source = levels(torch.cat([rgb * (alpha > 0), alpha]), 255)
    result, headers = upscaled(service, png_of(source, bits=8), "png")
    assert headers["content-type"] == "image/png"
    picture = decode(result, LIMIT)
    assert (picture.size, picture.channels, picture.depth) == (OUT, 4, 8)
    assert picture.alpha is not None
    wanted = interpolate(alpha.mul(255).round()[None] / 255, OUT[::-1], mode="bicubic").clamp(0, 1)
    assert (picture.alpha - wanted).abs().max() <= 0.51 / 255
    # Black lay under the transparent pixels, and none of it shows.
    seen = (picture.alpha > 0.5).expand_as(picture.rgb)
    over = interpolate(rgb[None], OUT[::-1], mode="bicubic")
    assert (picture.rgb - over)[seen].abs().mean() < 0.1


def test_a_tiff_of_16_bits_comes_back_with_all_of_them(service: httpx.Client) -> None:
    rgb = colours()
    source = levels(rgb, 65535).astype("<u2").tobytes()
    data = tiff_of(source, WIDTH, HEIGHT, photometric=2, bits=(16, 16, 16))
    result, headers = upscaled(service, data, "tiff")
    assert headers["content-type"] == "image/tiff"
    assert ".tif" in headers["content-disposition"]
    picture = decode(result, LIMIT)
    assert (picture.size, picture.channels, picture.depth) == (OUT, 3, 16)
    assert off(picture, rgb) < 0.03
    low = (picture.rgb * 65535).round().long() % 257
    assert len(low.flatten().bincount().nonzero()) > 200


def test_a_cmyk_jpeg_comes_back_in_its_colours(service: httpx.Client) -> None:
    inks = colours(4)
    image = Image.fromarray(levels(inks, 255).astype(np.uint8), "CMYK")
    result, headers = upscaled(service, file_of(image, "JPEG", quality=98), "jpeg")
    assert headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(result)) as found:
        assert (found.mode, found.size) == ("RGB", OUT)
    assert off(decode(result, LIMIT), (1 - inks[:3]) * (1 - inks[3:])) < 0.03


def test_a_palette_png_comes_back_in_its_colours(service: httpx.Client) -> None:
    image = Image.fromarray(levels(colours(), 255).astype(np.uint8)).quantize(64)
    result, _ = upscaled(service, file_of(image), "png")
    picture = decode(result, LIMIT)
    assert (picture.size, picture.channels, picture.depth) == (OUT, 3, 8)
    wanted = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    assert off(picture, wanted) < 0.03


def test_a_grey_png_of_16_bits_comes_back_grey(service: httpx.Client) -> None:
    grey = colours(1)
    result, _ = upscaled(service, png_of(levels(grey, 65535), bits=16), "png")
    picture = decode(result, LIMIT)
    assert (picture.size, picture.channels, picture.depth) == (OUT, 1, 16)
    assert off(picture, grey.expand(3, -1, -1)) < 0.03
