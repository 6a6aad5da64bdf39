"""The autoencoder in pieces against the whole image: error, seams, seconds, memory.

    python -m benchmarks.pieces --preset stablesr-512 --weights random --sizes 1024x1024

Encodes and decodes a picture with either, each in a process of its own, so that its peak memory
is its own. Sizes are width x height of the result, in px.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import describe, peak_memory, synchronize
from benchmarks.model import DTYPES, alone
from models.checkpoints.folder import load_folder, preset_folder
from models.config import AutoencoderConfig
from models.networks.autoencoder import Autoencoder
from models.networks.bundle import AnyAutoencoder
from models.pieces import Pieces, coding_cost, decode, encode
from models.presets import PRESETS


@dataclass(frozen=True)
class Task:
    """One image, coded one way."""

    preset: str
    weights: str
    device: str
    dtype: str
    height: int
    width: int
    fidelity: float
    threads: int
    pieces: Pieces | None
    """None: the whole image at once."""
    result: str
    """File that the decoded image is written to."""


@dataclass(frozen=True)
class Measured:
    """What coding one image took."""

    encode_seconds: float
    decode_seconds: float
    processor_seconds: float
    """Of all threads, for both: unlike the clock it is the same on a busy machine."""
    before_bytes: int
    """Peak memory before, the weights above all."""
    peak_bytes: int


@dataclass(frozen=True)
class Compared:
    """Pieces against the whole."""

    height: int
    width: int
    whole: Measured
    pieces: Measured
    relative_error: float
    """Norm of the images' difference over the norm of the whole's."""
    at_borders: float
    """Largest absolute difference in a row beside a border between two strips."""
    elsewhere: float
    estimated_bytes: int
    """What `coding_cost` says of maps, strips and the image: device and host."""
    tflop: float


def random_autoencoder(config: AutoencoderConfig, device: str, dtype: torch.dtype) -> Autoencoder:
    """An autoencoder whose activations neither vanish nor grow."""
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
    autoencoder = autoencoder.to(dtype).to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0, 0.9 / fan_in**0.5, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return autoencoder.eval().requires_grad_(False)


def load(task: Task) -> AnyAutoencoder:
    """The preset's autoencoder, or one of the released size with random weights."""
    dtype = DTYPES[task.dtype]
    if task.weights == "random":
        return random_autoencoder(AutoencoderConfig(), task.device, dtype)
    folder = preset_folder(PRESETS[task.preset])
    return load_folder(folder, torch.device(task.device), dtype).autoencoder


def picture(height: int, width: int) -> Tensor:
    """Smooth shapes with some noise, (1, 3, height, width) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    sides = (max(height // 32, 2), max(width // 32, 2))
    image = F.interpolate(torch.rand(1, 3, *sides, generator=generator), (height, width))
    return (image + 0.1 * torch.randn(image.shape, generator=generator)).clamp(0, 1) * 2 - 1


@torch.inference_mode()
def measure(task: Task) -> Measured:
    """Codes the image in this process; a small one first, which is not counted."""
    torch.set_num_threads(task.threads)
    autoencoder = load(task)
    code(replace(task, height=64, width=64), autoencoder)
    before = peak_memory(torch.device(task.device))
    used = time.process_time()
    image, encoding, decoding = code(task, autoencoder)
    used = time.process_time() - used
    peak = peak_memory(torch.device(task.device))
    torch.save(image, task.result)
    return Measured(encoding, decoding, used, before, peak)


def code(task: Task, autoencoder: AnyAutoencoder) -> tuple[Tensor, float, float]:
    """The image encoded and decoded again, and the seconds of either."""
    device, dtype = torch.device(task.device), DTYPES[task.dtype]
    # The released autoencoder says a deviation too.
    channels = autoencoder.config.latent_channels
    image = picture(task.height, task.width)
    began = time.perf_counter()
    if task.pieces is None:
        encoded = autoencoder.encode(image.to(device, dtype))
        latent = encoded.moments[:, :channels]
        synchronize(device)
        between = time.perf_counter()
        weight = torch.tensor(task.fidelity, device=device, dtype=dtype)
        out = autoencoder.decode(latent, encoded.features, weight).float().cpu()
        return out, between - began, time.perf_counter() - between
    with encode(autoencoder, image, task.pieces, device=device, dtype=dtype) as pieces:
        latent = pieces.moments[:, :channels]
        synchronize(device)
        between = time.perf_counter()
        out = decode(
            autoencoder,
            latent,
            pieces.features,
            task.fidelity,
            task.pieces,
            device=device,
            dtype=dtype,
            free_features=True,
        )
    return out, between - began, time.perf_counter() - between


def compare(task: Task, pieces: Pieces) -> Compared:
    """Both ways, one after the other."""
    measured, images = [], []
    with tempfile.TemporaryDirectory() as folder:
        for way in (None, pieces):
            one = replace(task, pieces=way, result=str(Path(folder) / "image.pt"))
            measured.append(alone(measure, one))
            images.append(torch.load(one.result))
    whole, cut = images
    difference = (whole - cut).abs()[0].amax(dim=(0, 2))
    beside = torch.arange(task.height)
    border = ((beside % pieces.rows == 0) & (beside > 0)) | (
        (beside % pieces.rows == pieces.rows - 1) & (beside < task.height - 1)
    )
    config = AutoencoderConfig() if task.weights == "random" else load(task).config
    height, width, dtype = task.height, task.width, DTYPES[task.dtype]
    costs = [
        coding_cost(config, height, width, pieces, dtype, decode=d, fusion=True)
        for d in (False, True)
    ]
    decoded = 3 * height * width * torch.float32.itemsize
    return Compared(
        height,
        width,
        measured[0],
        measured[1],
        relative_error=float((whole - cut).norm() / whole.norm()),
        at_borders=float(difference[border].max()) if border.any() else 0.0,
        elsewhere=float(difference[~border].max()),
        estimated_bytes=max(c.maps * (pieces.keep != "disk") + c.strips + decoded for c in costs),
        tflop=sum(c.flops for c in costs) / 1e12,
    )


def table(results: list[Compared], a: argparse.Namespace) -> str:
    """The results for a person."""
    of = f"{a.weights} weights" if a.weights == "random" else a.preset
    lines = [
        describe(torch.device(a.device)),
        f"{of}, {a.dtype}, strips of {a.rows} rows kept on {a.keep}; "
        "memory in GB beyond the weights, the estimate in brackets",
    ]
    for r in results:
        whole, cut = r.whole, r.pieces
        used = [(m.peak_bytes - m.before_bytes) / 1e9 for m in (whole, cut)]
        lines += [
            f"{r.width} x {r.height}, {r.tflop:.2f} TFLOP",
            f"  error {r.relative_error:.1e}; largest difference at borders {r.at_borders:.1e}, "
            f"elsewhere {r.elsewhere:.1e}",
            f"  whole  encode {whole.encode_seconds:7.2f} s, decode {whole.decode_seconds:7.2f} s, "
            f"processor {whole.processor_seconds:7.2f} s, {used[0]:6.2f} GB",
            f"  pieces encode {cut.encode_seconds:7.2f} s, decode {cut.decode_seconds:7.2f} s, "
            f"processor {cut.processor_seconds:7.2f} s, {used[1]:6.2f} GB "
            f"({r.estimated_bytes / 1e9:.2f})",
        ]
    return "\n".join(lines)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()) or int(width) % 8 or int(height) % 8:
        raise argparse.ArgumentTypeError(f"{text} is not like 520x392, in multiples of 8")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--weights", choices=("random", "preset"), default="preset")
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(512, 512), (264, 520)])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--keep", choices=("device", "host", "disk"), default="device")
    parser.add_argument("--attention-keys", type=int, default=65_536)
    parser.add_argument("--scratch", type=Path, help="folder for --keep disk")
    parser.add_argument("--fidelity", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    a = parser.parse_args()
    pieces = Pieces(a.rows, a.keep, a.attention_keys, a.scratch)
    results = []
    for width, height in a.sizes:
        task = Task(
            a.preset, a.weights, a.device, a.dtype, height, width, a.fidelity, a.threads, None, ""
        )
        results.append(compare(task, pieces))
    if a.json:
        print(json.dumps([asdict(r) for r in results], indent=2, default=str))
    else:
        print(table(results, a))


if __name__ == "__main__":
    main()
