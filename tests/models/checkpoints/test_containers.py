"""What may be given as a checkpoint: torch's zips, safetensors, and others; what is read of the
pickle in it, and that nothing in it is executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.checkpoints import containers
from models.checkpoints.containers import open_checkpoint
from models.errors import CheckpointError, CheckpointUnreadable
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


class Evil:
    """Reduces to a call of whatever it is given."""

    def __init__(self, callee: Callable[..., object], *args: object) -> None:
        self.callee, self.args = callee, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.callee, self.args


class Stateful:
    """Has a __setstate__, which a real unpickler calls."""

    seen: Path

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state["path"]).touch()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": str(self.seen)}


def attacks(target: Path) -> dict[str, object]:
    """Objects whose unpickling makes the file `target`."""
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    stateful = Stateful()
    stateful.seen = target
    nested = Evil(getattr, Evil(__import__, "os"), "system")
    return {
        "os.system": Evil(os.system, f"touch {target}"),
        "eval": Evil(eval, code),
        "exec": Evil(exec, code),
        "a call of what a call gives": Evil(map, nested, [f"touch {target}"]),
        "__setstate__": stateful,
        "inside a parameter": Evil(torch._utils._rebuild_parameter, Evil(eval, code), True, {}),
        "as the storage": Evil(
            torch._utils._rebuild_tensor_v2, Evil(eval, code), 0, (1,), (1,), False, {}
        ),
    }


REFUSED = {
    "os.system": r"holds what cannot be read without running it \(.*posix\.system.* is blocked\)",
    "inside a parameter": "is damaged",
    "as the storage": "is damaged",
}
"""What torch does not read around; of the other files everything but the attack is read."""


@pytest.mark.parametrize("attack", list(attacks(Path("x"))))
def test_nothing_in_a_malicious_file_is_executed(attack: str, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {"w": torch.ones(3), "evil": attacks(target)[attack]}}, path)
    if attack in REFUSED:
        with pytest.raises(CheckpointUnreadable, match=REFUSED[attack]) as caught:
            open_checkpoint(path)
        assert str(path) in str(caught.value)
        assert "weights_only" not in str(caught.value)
    else:
        checkpoint = open_checkpoint(path)
        assert torch.equal(checkpoint.tensors["w"].read(), torch.ones(3))
        assert checkpoint.others == ("evil",)
        assert checkpoint.foreign
    assert not target.exists()

    # The attack is one: torch's own unrestricted reader falls for it.
    with suppress(TypeError, AttributeError, RuntimeError):
        list(torch.load(path, weights_only=False)["state_dict"]["evil"])
    assert target.exists()


def test_a_stub_is_allowed_for_the_file_that_names_it_alone(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "evil": Evil(eval, "1")}, tmp_path / "a.ckpt")
    assert open_checkpoint(tmp_path / "a.ckpt").foreign == ("builtins.eval",)
    names = [item[1] for item in torch.serialization.get_safe_globals() if isinstance(item, tuple)]
    assert "builtins.eval" not in names
    with pytest.raises(pickle.UnpicklingError, match="eval"):
        torch.load(tmp_path / "a.ckpt", weights_only=True)


def test_a_class_of_lightning_in_the_file_is_named_and_not_needed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "a.ckpt", {"w": torch.arange(4.0)}))
    named = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert named in checkpoint.foreign
    assert list(checkpoint.tensors) == ["w"]
    assert torch.equal(checkpoint.tensors["w"].read(), torch.arange(4.0))


def test_objects_of_foreign_classes_are_stubs(tmp_path: Path) -> None:
    stateful = Stateful()
    stateful.seen = tmp_path / "executed"
    state = {
        "w": torch.arange(3.0),
        "path": Path("/x"),
        "class": Path,
        "counts": defaultdict(int),
        "stateful": stateful,
    }
    torch.save(state, tmp_path / "a.ckpt")
    checkpoint = open_checkpoint(tmp_path / "a.ckpt")
    assert set(checkpoint.others) == {"path", "class", "counts", "stateful"}
    assert {"collections.defaultdict", "builtins.int"} < set(checkpoint.foreign)
    assert not (tmp_path / "executed").exists()


def test_a_pickle_with_any_byte_changed_is_read_or_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", {"w": torch.arange(4.0), "v": torch.ones(2, 3).T})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    drawn = random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(members[pickled])
        for _ in range(drawn.randint(1, 3)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, bytes(data) if name == pickled else content)
        try:
            for tensor in open_checkpoint(path).tensors.values():
                assert tensor.read().shape == tensor.shape
        except CheckpointError:
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((5,), (1,), 0),
        ((2,), (1,), 3),
        ((2, 2), (4, 1), 0),
        ((10**6, 10**6), (0, 0), 0),
        ((2**62,), (1,), 0),
        ((1,), (1,), 2**62),
    ],
)
def test_a_tensor_that_reaches_over_its_storage_is_refused(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int, tmp_path: Path
) -> None:
    class Claim:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            storage = torch.arange(4.0).untyped_storage()
            kind: Any = torch.storage.TypedStorage
            typed = kind(wrap_storage=storage, dtype=torch.float32, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, offset, shape, stride, False, {})

    path = tmp_path / "a.ckpt"
    torch.save({"fits": torch.ones(1), "claims": Claim()}, path)
    with pytest.raises(
        CheckpointUnreadable, match=r"a\.ckpt .*(4 are there|not resizable|overflow)"
    ):
        open_checkpoint(path)


def test_a_pickle_larger_than_any_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"]" * (9 * 2**20))
    with pytest.raises(CheckpointUnreadable, match=r"its pickle has 9437184 bytes"):
        open_checkpoint(path)


def test_an_archive_that_unpacks_to_more_than_any_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, packed = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    torch.save({"w": torch.zeros(10_000)}, path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for name in stored.namelist():
            out.writestr(name, stored.read(name))
    assert len(open_checkpoint(packed).tensors) == 1
    monkeypatch.setattr(containers, "_MAX_UNPACKED_BYTES", 40_000)
    assert len(open_checkpoint(path).tensors) == 1
    with pytest.raises(CheckpointUnreadable, match=r"unpacked it has \d+ bytes"):
        open_checkpoint(packed)


def test_a_file_is_mapped_anew_when_much_of_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    tensors = {str(i): torch.full((1000,), float(i)) for i in range(10)}
    torch.save(tensors, path)
    loads: list[object] = []
    load = torch.load

    def count(path: Path, **options: Any) -> object:
        loads.append(path)
        return load(path, **options)

    monkeypatch.setattr(torch, "load", count)
    monkeypatch.setattr(containers, "_MAX_RESIDENT_BYTES", 10_000)
    checkpoint = open_checkpoint(path)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensors[name].read(), tensor)
    assert len(loads) == 4
