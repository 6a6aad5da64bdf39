"""The pickle inside a checkpoint: what is read of it, and that nothing in it is executed."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints import containers
from models.checkpoints.containers import open_checkpoint
from models.errors import CheckpointError, CheckpointUnreadable
from tests.models.released import save


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
    monkeypatch.setattr(containers, "_MAX_TOUCHED_BYTES", 10_000)
    checkpoint = open_checkpoint(path)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensors[name].read(), tensor)
    assert len(loads) == 4
