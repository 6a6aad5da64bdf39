"""Files of random numbers in the layout of the released checkpoints."""

from __future__ import annotations

import gzip
import json
import math
import mmap
import sys
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import set_default_mmap_options, skip_data

INVENTORY = Path(__file__).parents[1] / "tests" / "golden" / "keys_full.json.gz"
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint"

Shapes = Mapping[str, list[int]]


def released_shapes() -> tuple[Shapes, Shapes]:
    """Names and shapes of the diffusion file and of the autoencoder file."""
    with gzip.open(INVENTORY) as file:
        inventory: dict[str, Shapes] = json.load(file)
    return inventory["state_dict"], inventory["cfw_state_dict"]


def write_released(folder: Path, diffusion: Shapes, autoencoder: Shapes) -> tuple[Path, Path]:
    """Both files, with the optimizer state and the losses that training left in them."""
    paths = folder / "stablesr_000117.ckpt", folder / "vqgan_cfw_00011.ckpt"
    guidance = {n: s for n, s in diffusion.items() if n.startswith("structcond") or ".spade." in n}
    _write(paths[0], diffusion, guidance)
    discriminator = {"loss.discriminator.main": [2_767_873]}
    losses = {"loss.perceptual_loss.net": [14_714_688], **discriminator}
    fusion = {n: s for n, s in autoencoder.items() if "fusion" in n}
    _write(paths[1], {**autoencoder, **losses}, {**fusion, **discriminator})
    return paths


def _write(path: Path, shapes: Shapes, adapters: Shapes) -> None:
    """A Lightning checkpoint of `shapes`, with Adam's two moments of `adapters`.

    Only its layout is written at first. The numbers are drawn in the file, which is mapped, so that
    memory never holds the whole of it.
    """
    moments = ("exp_avg", "exp_avg_sq")
    with _lightning() as callback:
        with FakeTensorMode():
            checkpoint = {
                "epoch": 117,
                "global_step": 16500,
                "pytorch-lightning_version": "1.4.2",
                "state_dict": OrderedDict((n, torch.empty(s)) for n, s in shapes.items()),
                "callbacks": {callback: {"monitor": "val/loss_simple_ema"}},
                "optimizer_states": [
                    {
                        "state": {
                            i: {"step": 1, **{m: torch.empty(s) for m in moments}}
                            for i, s in enumerate(adapters.values())
                        },
                        "param_groups": [{"lr": 5e-5}],
                    }
                ],
                "lr_schedulers": [],
            }
        with skip_data(materialize_fake_tensors=True):
            torch.save(checkpoint, path)
        with set_default_mmap_options(mmap.MAP_SHARED):
            # Written just now. The callback's class is none that torch allows by itself.
            checkpoint = torch.load(path, mmap=True, weights_only=False)
    for name, tensor in checkpoint["state_dict"].items():
        _draw(tensor, name)


def _draw(tensor: Tensor, name: str) -> None:
    """By the name, so that the encoder that is in both files has the same numbers in both."""
    name = name.removeprefix("first_stage_model.")
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    scale = 0.9 / math.sqrt(max(1, tensor[0].numel())) if tensor.ndim > 1 else 0.1
    mean = 1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0
    tensor.normal_(mean, scale, generator=generator)


@contextmanager
def _lightning() -> Iterator[type]:
    """The class that the released files name, as long as they are written: it is not installed."""
    names = [CALLBACK.rsplit(".", i)[0] for i in (2, 1)] + [CALLBACK]
    modules = {name: ModuleType(name) for name in names}
    callback = type("ModelCheckpoint", (), {"__module__": CALLBACK})
    vars(modules[CALLBACK])["ModelCheckpoint"] = callback
    sys.modules.update(modules)
    try:
        yield callback
    finally:
        for name in names:
            del sys.modules[name]
