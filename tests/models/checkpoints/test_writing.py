"""Safetensors files that are written tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from models.checkpoints.containers import open_checkpoint
from models.checkpoints.writing import write_safetensors


def test_the_safetensors_library_reads_what_is_written_tensor_by_tensor(tmp_path: Path) -> None:
    # Odd sizes between wide types: the library refuses tensors that are not aligned.
    tensors = {
        "scalar": torch.tensor(2.5),
        "half": torch.arange(7).half(),
        "float": torch.linspace(-3, 3, 30).reshape(5, 6),
        "brain": torch.arange(7).bfloat16(),
        "empty": torch.empty(0, 3),
        "odd": torch.arange(3.0),
    }
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {name: t.shape for name, t in tensors.items()}, tensors.items())
    ours = {name: lazy.read() for name, lazy in open_checkpoint(path).tensors.items()}
    for loaded in (load_file(path), ours):
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor)
