"""The pickle inside a checkpoint: what is read of it, and that nothing in it is executed."""

from __future__ import annotations

import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints import archive as archives
from models.checkpoints import pickles
from models.checkpoints.archive import open_archive
from models.checkpoints.files import open_checkpoint
from models.checkpoints.pickled import Global, Inert, PickledStorage
from models.checkpoints.pickles import MAX_STEPS, read_pickle
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


@pytest.mark.parametrize("attack", list(attacks(Path("x"))))
def test_nothing_in_a_malicious_file_is_executed(attack: str, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {"w": torch.ones(3), "evil": attacks(target)[attack]}}, path)
    checkpoint = open_checkpoint(path)
    assert not target.exists()
    assert torch.equal(checkpoint.tensors["w"].read(), torch.ones(3))
    assert checkpoint.others == ("evil",)
    assert checkpoint.foreign

    # The attack is one: torch's own unrestricted reader falls for it.
    with suppress(TypeError, AttributeError, RuntimeError):
        list(torch.load(path, weights_only=False)["state_dict"]["evil"])
    assert target.exists()


def test_a_class_of_lightning_in_the_file_is_named_and_not_needed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "a.ckpt", {"w": torch.arange(4.0)}))
    named = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert named in checkpoint.foreign
    assert list(checkpoint.tensors) == ["w"]
    assert torch.equal(checkpoint.tensors["w"].read(), torch.arange(4.0))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_in_every_protocol(protocol: int) -> None:
    value: dict[str, object] = {
        "numbers": [1, -5, 2**40, 2**80, 1.5, True, False, None],
        "texts": ("a", "ä" * 300, "") if protocol < 3 else (b"bytes", b"x" * 300, bytes(70_000)),
        "nested": {"x": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "y": {}},
        "ordered": OrderedDict([("a", 1)]),
    }
    assert read_pickle(pickle.dumps(value, protocol)).value == value


def test_classes_and_their_objects_become_names() -> None:
    read = read_pickle(pickle.dumps({"class": Path, "object": Path("/x"), "set": {1}}))
    assert isinstance(read.value, dict)
    assert isinstance(read.value["class"], Global)
    assert isinstance(read.value["object"], Inert)
    assert isinstance(read.value["set"], Inert)
    assert any(name.endswith(".Path") for name in read.foreign)


def test_keys_that_are_no_text_are_dropped_and_not_hashed() -> None:
    deep = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s."
    assert read_pickle(deep).value == {}


def test_a_memo_of_gigabytes_is_not_allocated() -> None:
    far = b"\x80\x02K\x07r" + struct.pack("<I", 2**31 - 1) + b"."
    assert read_pickle(far).value == 7


ORDERED = b"ccollections\nOrderedDict\nq\x01"


def texts(count: int, then: bytes) -> bytes:
    """Instructions for that many texts, each followed by others."""
    return b"".join(b"X" + struct.pack("<I", 6) + b"%06d" % i + then for i in range(count))


def test_what_is_not_known_is_one_object_however_often_it_stands_there() -> None:
    for one in (
        b"\x8f",
        b"cx\ny\n)R",
        b"(\x91",
        b"K\x01Q",
        b"ctorch._utils\n_rebuild_tensor\n(NNNNtR",
    ):
        value = read_pickle(b"\x80\x02](" + one * 100 + b"e.").value
        assert isinstance(value, list)
        assert len(value) == 100
        assert len({id(item) for item in value}) == 1
        assert isinstance(value[0], Inert)
    classes = read_pickle(b"\x80\x02](" + b"cx\ny\n" * 100 + b"e.").value
    assert isinstance(classes, list)
    assert len({id(item) for item in classes}) == 1


def test_a_pickle_of_more_steps_than_any_checkpoint_has_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_STEPS == 2_000_000
    monkeypatch.setattr(pickles, "MAX_STEPS", 10_000)
    assert isinstance(read_pickle(b"\x80\x02" + b"\x8f" * 9_998 + b".").value, Inert)
    with pytest.raises(ValueError, match="takes more than 10000 steps"):
        read_pickle(b"\x80\x02" + b"\x8f" * 9_999 + b".")


def test_items_that_a_call_goes_over_again_are_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_STEPS", 10_000)
    pairs = b"\x80\x02" + ORDERED + b"](" + texts(1000, b"K\x01\x86") + b"e\x85q\x02"
    value = read_pickle(pairs + b"h\x01h\x02R.").value
    assert isinstance(value, dict)
    assert len(value) == 1000
    with pytest.raises(ValueError, match="takes more than 10000 steps"):
        read_pickle(pairs + b"h\x01h\x02R" * 100 + b".")


def test_what_is_no_pair_is_not_gone_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that holds itself a thousand times is no thousand lists of a thousand pairs."""
    filled: list[int] = []
    monkeypatch.setattr(pickles, "_fill", lambda target, items: filled.append(len(items)))
    data = b"\x80\x02]q\x02(" + b"h\x02" * 1000 + b"X\x01\x00\x00\x00aK\x01\x86e0" + ORDERED
    assert read_pickle(data + b"h\x02\x85R.").value == {}
    assert filled == [2]


def test_tuples_of_one_tuple_take_no_more_items_than_instructions() -> None:
    value, depth = read_pickle(b"\x80\x02)" + b"2\x86" * 1000 + b".").value, 0
    while isinstance(value, tuple) and value:
        assert value[0] is value[1]
        value, depth = value[0], depth + 1
    assert depth == 1000
    value = read_pickle(b"\x80\x02]q\x01" + b"(h\x01h\x01e" * 100 + b".").value
    assert isinstance(value, list)
    assert len(value) == 200


def test_a_long_name_is_not_joined_again_and_again() -> None:
    text = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\x01"
    with pytest.raises(ValueError, match="names a class of 2097152 characters"):
        read_pickle(b"\x80\x02" + text + b"h\x01h\x01\x93.")


def test_memo_numbers_of_one_hash_are_refused() -> None:
    prime = 2**61 - 1
    assert hash(prime) == hash(2 * prime) == 0
    with pytest.raises(ValueError, match="a memo number that no program writes"):
        read_pickle(b"\x80\x02Np%d\np%d\n." % (prime, 2 * prime))


def test_a_number_of_many_digits_is_refused_and_not_quoted() -> None:
    with pytest.raises(ValueError, match="4300 digits") as caught:
        read_pickle(b"\x80\x02L" + b"9" * 10**6 + b"L\n.")
    assert len(str(caught.value)) < 300
    with pytest.raises(ValueError, match="makes no sense") as caught:
        read_pickle(b"S" + b"9" * 10**6 + b"\n.")
    assert len(str(caught.value)) < 300


def test_how_many_numbers_a_storage_has_is_a_size() -> None:
    start = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000N"
    assert isinstance(read_pickle(start + b"K\xfftQ.").value, PickledStorage)
    minus = b"\x8b" + struct.pack("<i", 20_000) + b"\xfe" * 20_000
    with pytest.raises(ValueError, match="offset or count is no number"):
        read_pickle(start + minus + b"tQ.")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02t.",
        b"\x80\x02h\x07.",
        b"\x80\x02]R.",
        b"\x80\x02K\x01K\x02\x93.",
        b"\x80\x02\x8d" + b"\xff" * 8 + b"a.",
        b"\xffnonsense",
        b"L" + b"9" * 5000 + b"L\n.",
    ],
)
def test_a_senseless_pickle_is_an_error_of_one_kind(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_pickle(data)


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
            for tensor in open_archive(path).tensors.values():
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
    with pytest.raises(CheckpointUnreadable, match=r"claims of shape .* and 4 are there"):
        open_checkpoint(path)


def test_a_pickle_larger_than_any_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"]" * (9 * 2**20))
    with pytest.raises(CheckpointUnreadable, match=r"its pickle has 9437184 bytes"):
        open_checkpoint(path)


def test_views_that_inflate_one_storage_again_and_again_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, packed = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    whole = torch.zeros(1000)
    torch.save({str(i): whole[i:] for i in range(100)}, path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for name in stored.namelist():
            out.writestr(name, stored.read(name))
    monkeypatch.setattr(archives, "_MAX_INFLATED_BYTES", 4000 * 100)
    assert len(open_checkpoint(packed).tensors) == 100
    monkeypatch.setattr(archives, "_MAX_INFLATED_BYTES", 4000 * 99)
    assert len(open_checkpoint(path).tensors) == 100
    with pytest.raises(CheckpointUnreadable, match=r"would have to be inflated"):
        open_checkpoint(packed)
