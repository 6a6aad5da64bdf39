"""Peak memory and seconds of converting full-size files in the layout of the released ones.

    python -m benchmarks.convert

Writes a diffusion file and an autoencoder file of random numbers (7.4 GB) with the names and shapes
of the released ones: a zip of a pickle that names Lightning's callback and of storages, with
optimizer state up to the released size. Converts them in a process of its own, and removes all of
it. Nothing here holds more than a few megabytes of numbers either.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.machine import describe
from models.checkpoints.convert import convert
from models.checkpoints.folder import verify
from models.checkpoints.sources import Sources
from models.checkpoints.writing import Form
from models.presets import get_preset

INVENTORY = Path(__file__).parents[1] / "tests" / "golden" / "keys_full.json.gz"
_CHUNK = 2**22

Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class _Storage:
    """Numbers that will be drawn when they are written: by the name, so that the same name in
    both files has the same numbers."""

    key: str
    name: str
    shape: list[int]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Tensor:
    """Pickles as a tensor of a storage."""

    storage: _Storage

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        shape = tuple(self.storage.shape)
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        rebuild = torch._utils._rebuild_tensor_v2
        return rebuild, (self.storage, 0, shape, stride, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, _Storage):
            return ("storage", torch.FloatStorage, obj.key, "cpu", obj.count)
        return None


@contextmanager
def _lightning() -> Iterator[type]:
    """The class that the released files name, as long as they are written: it is not installed."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    names = [name.rsplit(".", i)[0] for i in (2, 1)] + [name]
    modules = {n: ModuleType(n) for n in names}
    callback = type("ModelCheckpoint", (), {"__module__": name})
    vars(modules[name])["ModelCheckpoint"] = callback
    sys.modules.update(modules)
    try:
        yield callback
    finally:
        for n in names:
            del sys.modules[n]


def write(path: Path, shapes: Shapes, trained: Shapes) -> None:
    """A Lightning checkpoint of `shapes`, with Adam's two moments of `trained`."""
    storages: list[_Storage] = []

    def tensor(name: str, shape: list[int]) -> _Tensor:
        storages.append(_Storage(str(len(storages)), name, shape))
        return _Tensor(storages[-1])

    moments = {
        i: {"step": 1, **{m: tensor(f"{m}.{n}", s) for m in ("exp_avg", "exp_avg_sq")}}
        for i, (n, s) in enumerate(trained.items())
    }
    state = OrderedDict((name, tensor(name, shape)) for name, shape in shapes.items())
    pickled = io.BytesIO()
    with _lightning() as callback:
        checkpoint = {
            "epoch": 117,
            "global_step": 16500,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": state,
            "callbacks": {callback: {"monitor": "val/loss_simple_ema"}},
            "optimizer_states": [{"state": moments, "param_groups": [{"lr": 5e-5}]}],
            "lr_schedulers": [],
        }
        _Pickler(pickled, protocol=2).dump(checkpoint)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", b"little")
        for storage in storages:
            with archive.open(f"archive/data/{storage.key}", "w", force_zip64=True) as member:
                for piece in _numbers(storage):
                    member.write(piece)
        archive.writestr("archive/version", b"3\n")


def _numbers(storage: _Storage) -> Iterator[bytes]:
    name = storage.name.removeprefix("first_stage_model.")
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    shape = storage.shape
    scale = 0.9 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
    middle = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
    for start in range(0, storage.count, _CHUNK):
        count = min(_CHUNK, storage.count - start)
        drawn = torch.randn(count, generator=generator).mul_(scale).add_(middle)
        yield drawn.numpy().tobytes()


def write_released(folder: Path) -> tuple[Path, Path]:
    """Both files, of the sizes that the released ones have."""
    with gzip.open(INVENTORY) as packed:
        inventory: dict[str, Shapes] = json.load(packed)
    diffusion, autoencoder = inventory["state_dict"], inventory["cfw_state_dict"]
    own = {n: s for n, s in diffusion.items() if n.startswith("structcond") or ".spade." in n}
    fusion = {n: s for n, s in autoencoder.items() if "fusion" in n}
    # The perceptual and the adversarial loss of the autoencoder's training.
    loss = {"loss.perceptual_loss.net": [14_714_688], "loss.discriminator.main": [2_767_873]}
    paths = folder / "stablesr_000117.ckpt", folder / "vqgan_cfw_00011.ckpt"
    write(paths[0], diffusion, own)
    discriminator = {"loss.discriminator.main": loss["loss.discriminator.main"]}
    write(paths[1], {**autoencoder, **loss}, {**fusion, **discriminator})
    return paths


def _peak_bytes() -> int:
    """Most memory this process had resident at once: VmHWM, which Linux counts in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def measure(files: tuple[Path, Path], folder: Path, form: Form) -> dict[str, object]:
    """Converts in this process, says what it took, and verifies what was written."""
    before = _peak_bytes()
    began = time.perf_counter()
    done = convert(get_preset("stablesr-512"), Sources(*files), folder, form)
    seconds, peak = time.perf_counter() - began, _peak_bytes()
    verify(folder)
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "peak_bytes_before": before,
        "input_bytes": sum(path.stat().st_size for path in files),
        "output_bytes": done.bytes,
        "files": len(done.record.files),
        "tensors": done.tensors,
        "shared_encoder": done.record.shared_encoder,
        "dropped": dict(done.dropped),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where 11 GB are free; a temporary folder")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--shard-bytes", type=int, help="write files of at most this size")
    parser.add_argument("--text", action="store_true", help="keep the text tower")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--files", type=Path, nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.files:
        form = Form.named(a.dtype, a.shard_bytes, a.text)
        print(json.dumps(measure((a.files[0], a.files[1]), a.folder / "out", form)))
        return
    if a.folder:
        a.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="convert-", dir=a.folder))
    try:
        began = time.perf_counter()
        files = write_released(folder)
        written = time.perf_counter() - began
        given = [*sys.argv[1:], "--folder", str(folder), "--files", *map(str, files)]
        command = [sys.executable, "-m", "benchmarks.convert", *given]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    finally:
        shutil.rmtree(folder)
    result = json.loads(ended.stdout)
    if a.json:
        print(json.dumps({"machine": describe(torch.device("cpu")), **result}, indent=2))
        return
    print(describe(torch.device("cpu")))
    print(f"written   {result['input_bytes'] / 1e9:6.2f} GB in {written:.0f} s")
    print(
        f"converted {result['output_bytes'] / 1e9:6.2f} GB in {result['seconds']:.0f} s: "
        f"{result['tensors']} tensors, {a.dtype}, {result['files']} file(s), "
        f"encoder {'shared' if result['shared_encoder'] else 'kept twice'}"
    )
    print(
        f"peak      {result['peak_bytes'] / 1e9:6.2f} GB resident, and "
        f"{result['peak_bytes_before'] / 1e9:.2f} GB before the first byte was read"
    )


if __name__ == "__main__":
    main()
