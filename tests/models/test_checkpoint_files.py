"""What a person may give as a checkpoint: every layout of torch's zip, safetensors, and others."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoints.containers import open_checkpoint
from models.checkpoints.writing import SafetensorsWriter
from models.errors import CheckpointUnreadable
from tests.models.released import Tensors, save

TENSORS = {
    "float": torch.linspace(-3, 3, 30).reshape(5, 6),
    "half": torch.arange(7).half(),
    "brain": torch.arange(7).bfloat16(),
    "long": torch.tensor([2**40, -1]),
    "truth": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
}


def assert_reads(path: Path, wanted: Tensors) -> None:
    found = open_checkpoint(path).tensors
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].shape, found[name].dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(found[name].read(), tensor), name
        assert found[name].read().is_contiguous()


def repack(path: Path, target: Path, root: str, compression: int = zipfile.ZIP_STORED) -> Path:
    """The same checkpoint with another root and packed in another way."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(root + name.split("/", 1)[1], old.read(name))
    return target


def test_every_type_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert_reads(save(tmp_path / "a.ckpt", TENSORS), TENSORS)


def test_a_state_dict_without_anything_around_it_is_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "diffusion_pytorch_model.bin")
    assert_reads(tmp_path / "diffusion_pytorch_model.bin", TENSORS)


def test_parameters_views_and_shared_storages_are_read(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    views = {
        "whole": whole,
        "row": whole[2],
        "column": whole[:, 3],
        "turned": whole.T,
        "corner": whole[1:3, 2:5],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    path = save(tmp_path / "a.ckpt", views)
    assert_reads(path, {name: t.detach().contiguous() for name, t in views.items()})
    assert path.stat().st_size < 6000


@pytest.mark.parametrize("root", ["archive/", "stablesr_000117/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_any_root_and_any_packing_is_read(root: str, compression: int, tmp_path: Path) -> None:
    large = {**TENSORS, "large": torch.randn(300_000), "part": torch.randn(90_000)[50_000:]}
    path = save(tmp_path / "a.ckpt", large)
    assert_reads(repack(path, tmp_path / "b.ckpt", root, compression), large)


def test_numbers_of_a_machine_of_the_other_byte_order_are_turned(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    save(path, {"w": torch.tensor([1.5, -2.0, 1e9])})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.ckpt", "w") as new:
        for name in old.namelist():
            if name.endswith("byteorder"):
                new.writestr(name, b"big")
            elif len(old.read(name)) == 12:
                new.writestr(name, struct.pack(">3f", 1.5, -2.0, 1e9))
            else:
                new.writestr(name, old.read(name))
    assert open_checkpoint(tmp_path / "b.ckpt").tensors["w"].read().tolist() == [1.5, -2.0, 1e9]


def test_an_archive_beyond_four_gigabytes_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", {"w": torch.arange(5.0)})
    with zipfile.ZipFile(path) as old:
        members = {name.split("/", 1)[1]: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w") as new:
        # A hole of 5 GB, which takes no room on the disk, before what is looked for.
        assert new.fp is not None
        new.fp.seek(5 * 10**9)
        new.start_dir = new.fp.tell()
        for name, content in members.items():
            new.writestr(f"archive/{name}", content)
    assert (tmp_path / "b.ckpt").stat().st_size > 2**32
    with (tmp_path / "b.ckpt").open("r+b") as file:
        file.write(b"PK\x03\x04")
    assert_reads(tmp_path / "b.ckpt", {"w": torch.arange(5.0)})


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused_with_its_name(kept: float, tmp_path: Path) -> None:
    for name, written in (
        ("a.ckpt", save(tmp_path / "a.ckpt", {"w": torch.randn(50_000)})),
        ("a.safetensors", tmp_path / "a.safetensors"),
    ):
        if name.endswith("safetensors"):
            save_file({"w": torch.randn(50_000)}, written)
        data = written.read_bytes()
        written.write_bytes(data[: int(kept * len(data))])
        with pytest.raises(CheckpointUnreadable, match=r"cut off.*get the file again") as caught:
            open_checkpoint(written)
        assert str(written) in str(caught.value)


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", {"w": torch.randn(500)})
    packed = repack(path, tmp_path / "b.ckpt", "archive/", zipfile.ZIP_DEFLATED)
    data = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        info = next(i for i in archive.infolist() if i.file_size == 2000)
    middle = info.header_offset + 30 + len(info.filename) + 20
    data[middle : middle + 1500] = bytes(1500)
    packed.write_bytes(data)
    with pytest.raises(CheckpointUnreadable, match="is damaged"):
        open_checkpoint(packed)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.randn(500)}, path)
    stored = open_checkpoint(path).tensors["w"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointUnreadable, match=r"cut off while it was read, before w"):
        stored.read()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello {world}\n" * 99, "is a text file"),
        ("Gewichte für später\n".encode() * 60, "is a text file"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"\n  <html>" + b" " * 2000, "is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:b8\nsize 6480000000\n",
            "is a pointer of Git LFS",
        ),
        (pickle.dumps({"w": 1}, 2), "old format of torch"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is no checkpoint"),
        (bytes(5000), "is no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_told_for_what_it_is(
    content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "stablesr_000117.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointUnreadable, match=said) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnreadable, match=r"There is no file .*x\.ckpt"):
        open_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointUnreadable, match="is a folder"):
        open_checkpoint(tmp_path)


def test_a_zip_around_a_checkpoint_is_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("download/stablesr_000117.ckpt", b"x")
    with pytest.raises(CheckpointUnreadable, match=r"unpack it, and give download/stablesr_0"):
        open_checkpoint(tmp_path / "a.zip")


def test_a_checkpoint_without_tensors_by_name_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "a.ckpt")
    with pytest.raises(CheckpointUnreadable, match="holds no tensors by name"):
        open_checkpoint(tmp_path / "a.ckpt")


def header(described: object) -> bytes:
    text = json.dumps(described).encode() if not isinstance(described, bytes) else described
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 99]}}, "was cut off or"),
        ({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, "was cut off or"),
        ({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, "is damaged"),
        ({"w": {"dtype": "Q4", "shape": [4], "data_offsets": [0, 16]}}, "is damaged .*Q4"),
        ({"w": {"dtype": "F8_E5M2", "shape": [16], "data_offsets": [0, 16]}}, "w has the type"),
        ({"w": {"dtype": "F32", "shape": [4]}}, "is damaged .*data_offsets"),
        ({"w": [1, 2]}, "is damaged"),
        (b"{" + b'"a":[' * 90_000, "is damaged"),
        (b"{not json", "is damaged"),
        (
            {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
            "was cut off or is damaged",
        ),
    ],
)
def test_a_safetensors_file_that_makes_no_sense_is_refused(
    described: object, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(header(described) + bytes(16))
    with pytest.raises(CheckpointUnreadable, match=said):
        open_checkpoint(path)


def test_the_safetensors_library_reads_what_is_written_tensor_by_tensor(tmp_path: Path) -> None:
    # Odd sizes between wide types: the library refuses tensors that are not aligned.
    order = ["scalar", "half", "float", "brain", "empty", "long", "truth"]
    tensors: dict[str, Tensor] = {name: TENSORS[name] for name in order}
    path = tmp_path / "a.safetensors"
    with SafetensorsWriter(path, {n: t.shape for n, t in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert_reads(path, tensors)


def test_a_tensor_that_never_comes_is_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"never came: b\."),
        SafetensorsWriter(tmp_path / "a", {"a": (2,), "b": (2,)}) as writer,
    ):
        writer.write("a", torch.ones(2))
