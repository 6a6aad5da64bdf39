"""`stablesr up` and `stablesr demo` whole: real Redis, worker, service and weights.

Images as people have them are sent to the service and back: nothing of theirs is lost.
"""

from __future__ import annotations

import io
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from typer.testing import CliRunner, Result

from cli.main import app
from tests.worker.image_files import file_of, png_of, tiff_of
from worker.images import DecodedImage, decode

# Whole processes that import torch; on a busy machine with two cores that takes its time.
pytestmark = pytest.mark.timeout(600)

OPTIONS = ("--steps", "2", "--seed", "3", "--scale", "2", "--fidelity-weight", "0")
WIDTH, HEIGHT, SCALE = 44, 40, 2.5
OUT = (110, 100)
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("source") / "in.png"
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a `stablesr up`, which must end in order."""
    data = tmp_path_factory.mktemp("data")
    lines: list[str] = []
    address: queue.Queue[str | None] = queue.Queue()

    def listen(stream: IO[str]) -> None:
        # To the end: a full pipe would stop the parts that write to it.
        for line in stream:
            lines.append(line)
            match = re.search(r"answers at (http://\S+)", line)
            if match is not None:
                address.put(match[1])
        address.put(None)

    command = [sys.executable, "-m", "cli", "up", "--port", "0", "--data", str(data)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        listener = threading.Thread(target=listen, args=(process.stderr,))
        listener.start()
        url = address.get(timeout=300)
        assert url is not None, f"stablesr up ended: {''.join(lines)}"
        yield url
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
        listener.join()
    assert status == 0, "".join(lines)
    assert lines[-1].strip() == "Ended."


def run(*arguments: str | Path) -> Result:
    """In this process, which has imported torch."""
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_same_seed_gives_the_same_image_with_and_without_a_server(
    server: str, source: Path, tmp_path: Path
) -> None:
    through = run("upscale", source, tmp_path / "through.png", "--server", server, *OPTIONS)
    assert through.exit_code == 0, through.stderr
    alone = run("upscale", source, tmp_path / "alone.png", *OPTIONS)
    assert alone.exit_code == 0, alone.stderr
    with Image.open(tmp_path / "alone.png") as one, Image.open(tmp_path / "through.png") as other:
        assert one.size == (96, 64)
        # Up to the rounding of sums, whose order may depend on the number of threads.
        assert max(ImageChops.difference(one, other).tobytes()) <= 2


def test_a_refusal_of_the_real_service_reaches_the_person(
    server: str, source: Path, tmp_path: Path
) -> None:
    refused = run("upscale", source, tmp_path / "x.png", "--server", server, "--preset", "big")
    assert refused.exit_code == 5
    assert "big" in refused.stderr
    assert "tiny" in refused.stderr


def test_a_folder_through_the_real_service_and_what_it_did_counts_without_one(
    server: str, source: Path, tmp_path: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "sub").mkdir(parents=True)
    (photos / "sub" / "b.png").write_bytes(source.read_bytes())
    (photos / "cut.png").write_bytes(source.read_bytes()[:-40])
    through = run("upscale", photos, out, "--server", server, *OPTIONS)
    assert through.exit_code == 9, through.stderr
    assert "1 of 2 images done, 1 failed; preset tiny, seed 3" in through.stderr
    assert re.search(r"Error: 1 image failed:\n  cut\.png: ", through.stderr)
    with Image.open(out / "sub" / "b.png") as image:
        assert image.size == (96, 64)
    (photos / "cut.png").unlink()
    alone = run("upscale", photos, out, *OPTIONS)
    assert alone.exit_code == 0, alone.stderr
    assert "0 images to do, 1 done before" in alone.stderr


def test_the_demo_writes_both_images_and_ends_with_0(source: Path, tmp_path: Path) -> None:
    shown = run("demo", source, "--out", tmp_path)
    assert shown.exit_code == 0, shown.stderr
    with Image.open(tmp_path / "upscaled.png") as image:
        assert image.size == (192, 128)
    with Image.open(tmp_path / "side-by-side.png") as image:
        assert image.width > 2 * 192
    assert re.search(r"job: denoise\W+\d+\.\d\d", shown.stderr)


@pytest.fixture
def http(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, trust_env=False, timeout=300) as client:
        yield client


def upscaled(http: httpx.Client, data: bytes, output_format: str) -> tuple[bytes, httpx.Headers]:
    """One step at full fidelity: quick, and near to the input."""
    form = {
        "preset": "tiny",
        "steps": "1",
        "seed": "1",
        "fidelity_weight": "1",
        "scale": str(SCALE),
        "output_format": output_format,
    }
    answer = http.post("/upscale", data=form, files={"image": data}, headers={"Prefer": "wait=60"})
    assert answer.status_code < 300, answer.text
    job = answer.json()
    while job["state"] in ("queued", "processing"):
        job = http.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=60"}).json()
    assert job["state"] == "succeeded", job
    assert (job["input"]["width"], job["input"]["height"]) == (WIDTH, HEIGHT)
    result = http.get(f"/jobs/{job['id']}/result")
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


def test_a_png_with_transparency_comes_back_with_it(http: httpx.Client) -> None:
    rgb = colours()
    alpha = torch.zeros(1, HEIGHT, WIDTH)
    alpha[:, 8:24, 12:36] = 1
    alpha[:, :, 20:30] *= 0.5
    source = levels(torch.cat([rgb * (alpha > 0), alpha]), 255)
    result, headers = upscaled(http, png_of(source, bits=8), "png")
    assert headers["content-type"] == "image/png"
    result_image = decode(result, LIMIT)
    assert (result_image.size, result_image.channels, result_image.depth) == (OUT, 4, 8)
    assert result_image.alpha is not None
    wanted = interpolate(alpha.mul(255).round()[None] / 255, OUT[::-1], mode="bicubic").clamp(0, 1)
    assert (result_image.alpha - wanted).abs().max() <= 0.51 / 255
    # Black lay under the transparent pixels, and none of it shows.
    seen = (result_image.alpha > 0.5).expand_as(result_image.rgb)
    over = interpolate(rgb[None], OUT[::-1], mode="bicubic")
    assert (result_image.rgb - over)[seen].abs().mean() < 0.1


def test_a_tiff_of_16_bits_comes_back_with_all_of_them(http: httpx.Client) -> None:
    rgb = colours()
    source = levels(rgb, 65535).astype("<u2").tobytes()
    data = tiff_of(source, WIDTH, HEIGHT, photometric=2, bits=(16, 16, 16))
    result, headers = upscaled(http, data, "tiff")
    assert headers["content-type"] == "image/tiff"
    assert ".tif" in headers["content-disposition"]
    result_image = decode(result, LIMIT)
    assert (result_image.size, result_image.channels, result_image.depth) == (OUT, 3, 16)
    assert off(result_image, rgb) < 0.03
    low = (result_image.rgb * 65535).round().long() % 257
    assert len(low.flatten().bincount().nonzero()) > 200


def test_a_cmyk_jpeg_comes_back_in_its_colours(http: httpx.Client) -> None:
    inks = colours(4)
    image = Image.fromarray(levels(inks, 255).astype(np.uint8), "CMYK")
    result, headers = upscaled(http, file_of(image, "JPEG", quality=98), "jpeg")
    assert headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(result)) as found:
        assert (found.mode, found.size) == ("RGB", OUT)
    assert off(decode(result, LIMIT), (1 - inks[:3]) * (1 - inks[3:])) < 0.03


def test_a_palette_png_comes_back_in_its_colours(http: httpx.Client) -> None:
    image = Image.fromarray(levels(colours(), 255).astype(np.uint8)).quantize(64)
    result, _ = upscaled(http, file_of(image), "png")
    result_image = decode(result, LIMIT)
    assert (result_image.size, result_image.channels, result_image.depth) == (OUT, 3, 8)
    wanted = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    assert off(result_image, wanted) < 0.03


def test_a_grey_png_of_16_bits_comes_back_grey(http: httpx.Client) -> None:
    grey = colours(1)
    result, _ = upscaled(http, png_of(levels(grey, 65535), bits=16), "png")
    result_image = decode(result, LIMIT)
    assert (result_image.size, result_image.channels, result_image.depth) == (OUT, 1, 16)
    assert off(result_image, grey.expand(3, -1, -1)) < 0.03
