"""`stablesr up` and `stablesr demo` whole: real Redis, worker, service and weights."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from PIL import Image, ImageChops

# Whole processes that import torch; on a busy machine with two cores that takes its time.
pytestmark = pytest.mark.timeout(600)

STABLESR = (sys.executable, "-m", "cli")
OPTIONS = ("--steps", "2", "--seed", "3", "--scale", "2")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("picture") / "in.png"
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running `stablesr up`, which must end in order."""
    data = tmp_path_factory.mktemp("data")
    said: list[str] = []
    address: queue.Queue[str | None] = queue.Queue()

    def listen(stream: IO[str]) -> None:
        # To the end: a full pipe would stop the parts that write to it.
        for line in stream:
            said.append(line)
            found = re.search(r"answers at (http://\S+)", line)
            if found is not None:
                address.put(found[1])
        address.put(None)

    command = [*STABLESR, "up", "--port", "0", "--data", str(data)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        listener = threading.Thread(target=listen, args=(process.stderr,))
        listener.start()
        url = address.get(timeout=300)
        assert url is not None, f"stablesr up ended: {''.join(said)}"
        yield url
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
        listener.join()
    assert status == 0, "".join(said)
    assert said[-1].strip() == "Ended."


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*STABLESR, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def test_the_same_seed_gives_the_same_image_with_and_without_a_server(
    server: str, picture: Path, tmp_path: Path
) -> None:
    through = run("upscale", picture, tmp_path / "through.png", "--server", server, *OPTIONS)
    assert through.returncode == 0, through.stderr
    alone = run("upscale", picture, tmp_path / "alone.png", *OPTIONS)
    assert alone.returncode == 0, alone.stderr
    with Image.open(tmp_path / "alone.png") as one, Image.open(tmp_path / "through.png") as other:
        assert one.size == (96, 64)
        # Up to the rounding of sums, whose order may depend on the number of threads.
        assert max(ImageChops.difference(one, other).tobytes()) <= 2


def test_a_refusal_of_the_real_service_reaches_the_person(
    server: str, picture: Path, tmp_path: Path
) -> None:
    refused = run("upscale", picture, tmp_path / "x.png", "--server", server, "--preset", "big")
    assert refused.returncode == 5
    assert "big" in refused.stderr
    assert "tiny" in refused.stderr


def test_the_demo_writes_both_pictures_and_ends_with_0(picture: Path, tmp_path: Path) -> None:
    shown = run("demo", picture, "--out", tmp_path)
    assert shown.returncode == 0, shown.stderr
    with Image.open(tmp_path / "upscaled.png") as image:
        assert image.size == (192, 128)
    with Image.open(tmp_path / "side-by-side.png") as image:
        assert image.width > 2 * 192
    assert re.search(r"job: denoise\W+\d+\.\d\d", shown.stderr)
