"""What the clients ask for, and what they must get: every request has a result of its own."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from PIL import Image

from models.geometry import output_size
from models.parameters import OutputFormat, UpscaleParameters
from stablesr_client.schema import Parameters
from tests.models.driving import drive
from tests.worker.double import Double
from worker.images import decode, rows_of, write

# Those below have other meanings to the double of the network.
FIRST_SEED = 10_000
MAX_PIXELS = 1_000_000


@dataclass(frozen=True)
class Request:
    """One image and its parameters; the number makes its result unlike all others."""

    number: int
    image: bytes
    parameters: Parameters


def request(number: int, seed: int) -> Request:
    """The request of this number, of 16 to 48 px a side: the same in every run of a seed."""
    rng = random.Random(seed * 1_000_003 + number)
    small = Image.frombytes("RGB", (4, 4), rng.randbytes(48))
    file = io.BytesIO()
    size = rng.randint(16, 48), rng.randint(16, 48)
    small.resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    parameters = Parameters(
        preset="tiny",
        scale=float(rng.choice((1, 2, 4))),
        steps=rng.randint(1, 12),
        seed=FIRST_SEED + number,
        output_format=rng.choice(get_args(OutputFormat)),
    )
    return Request(number, file.getvalue(), parameters)


def expected_result(request: Request) -> bytes:
    """The file that a worker with the double of the network makes of it, made here."""
    values: dict[str, Any] = dict(request.parameters)
    options = UpscaleParameters(**values)
    source = decode(request.image, MAX_PIXELS)
    width, height = output_size(*source.size, options.scale)
    model = Double()
    image = model.prepare(source.rgb, options, lambda share: None)
    latent = drive(
        model.sample(image, options), lambda step: model.predict([step.part(0, len(step))])[0]
    )
    rows = model.rows(image, latent, options, lambda share: None)
    with TemporaryDirectory(prefix="stablesr-expected-") as folder:
        path = Path(folder, "result")
        write(
            path,
            rows_of(source, rows, height, width),
            width=width,
            height=height,
            channels=source.channels,
            format=options.output_format,
            depth=source.depth,
        )
        return path.read_bytes()
