"""The list of photographs, and the way out of their packages."""

from __future__ import annotations

import io
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models
from tools import photographs as module
from tools.photographs import CROP, PhotographsUnavailable, main, photographs

SHIPPED_VERSION = 4  # version of the weights in the package
CROPS = Path(__file__).parents[1] / "photographs"
FREE = {
    "BSD-2-Clause",
    "CC-BY-2.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "GPL-2.0-or-later",
    "LGPL-3.0",
    "public-domain",
}


def test_no_source_that_is_judged_by_is_trained_on() -> None:
    sources = {
        role: {(p.package, p.path, p.member) for p in photographs() if p.role == role}
        for role in ("train", "validation", "held-out")
    }
    assert len(sources["train"]) >= 100
    assert len(sources["validation"]) >= 8
    assert len(sources["held-out"]) >= 30
    assert len(set.union(*sources.values())) == sum(map(len, sources.values()))
    addresses = [p.source for p in photographs() if p.source]
    assert len(addresses) == len(set(addresses)), "one photograph under two names"


def test_every_name_is_used_once_and_every_licence_is_free() -> None:
    entries = photographs()
    assert len({p.name for p in entries}) == len(entries)
    assert {p.licence for p in entries} <= FREE
    assert all(p.author for p in entries)


def test_the_kept_crops_are_those_held_out_from_the_first() -> None:
    held_out = {p.name for p in photographs() if p.role == "held-out" and not p.seen}
    assert {p.stem for p in CROPS.glob("*.webp")} == held_out
    licences = (CROPS / "LICENCES.md").read_text(encoding="utf-8")
    for name in held_out:
        assert f"`{name}.webp`" in licences
        with Image.open(CROPS / f"{name}.webp") as file:
            assert (file.size, file.mode) == ((CROP, CROP), "RGB")


def test_the_origin_of_the_weights_names_every_photograph_trained_on_and_no_other() -> None:
    origin = Path(models.__file__).parent / "weights" / "tiny" / "ORIGIN.md"
    rows = {
        line.split("`")[1]
        for line in origin.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    }
    assert rows == {p.name for p in photographs() if p.role == "train" or SHIPPED_VERSION in p.seen}


def package(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """Build a real Debian package."""
    root = folder / f"{name}.root"
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\n"
        "Description: photographs\n"
    )
    command = ["dpkg-deb", "--root-owner-group", "-b", str(root), str(folder / f"{name}_1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)


def png(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def qt_resource(folder: str, name: str, content: bytes) -> bytes:
    """A version 1 resource file with one folder that holds one file."""
    names, offsets = b"", []
    for text in (folder, name):
        offsets.append(len(names))
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
    tree = struct.pack(">IHII", 0, 2, 1, 1)  # the root: one child, at node 1
    tree += struct.pack(">IHII", offsets[0], 2, 1, 2)
    tree += struct.pack(">IHHHI", offsets[1], 0, 0, 0, 0)
    payload = struct.pack(">I", len(content)) + content
    start = 20
    ends = start + len(tree), start + len(tree) + len(names)
    header = struct.pack(">4s4I", b"qres", 1, start, ends[1], ends[0])
    return header + tree + names + payload


def eet_archive(entries: dict[str, bytes]) -> bytes:
    """An archive of Enlightenment's: a header, the directory, the names, then the data."""
    directory, names, data = b"", b"", b""
    names_at = 12 + 24 * len(entries)
    data_at = names_at + sum(len(name) + 1 for name in entries)
    for name, content in entries.items():
        place = (data_at + len(data), len(content), 0, names_at + len(names), len(name) + 1, 0)
        directory += struct.pack(">6I", *place)
        names += name.encode() + b"\0"
        data += content
    return struct.pack(">3I", 0x1EE70F42, len(entries), 0) + directory + names + data


@pytest.fixture
def small_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages with a photograph each, and a list that names them."""
    whole, *_ = (p for p in photographs() if p.role == "train")
    held_out, *_ = (p for p in photographs() if p.role == "held-out")
    entries = [
        replace(whole, name="a", package="plain", path="usr/a.png", member="", side=100),
        replace(
            held_out, name="b", package="packed", path="usr/b.rcc", member="in/b.png", crop=(8, 4)
        ),
    ]
    monkeypatch.setattr(module, "photographs", lambda: entries)
    package(tmp_path, "plain", {"usr/a.png": png(200, 120)})
    package(tmp_path, "packed", {"usr/b.rcc": qt_resource("in", "b.png", png(600, 540))})
    return tmp_path


def test_photographs_come_out_of_packages_and_of_qt_resource_files(small_list: Path) -> None:
    assert main([str(small_list / "out"), "--packages-dir", str(small_list)]) == 0
    with Image.open(small_list / "out" / "train" / "a.png") as file:
        assert file.size == (100, 60)
    with Image.open(small_list / "out" / "held-out" / "b.webp") as file:
        assert file.size == (CROP, CROP)
        whole = Image.open(io.BytesIO(png(600, 540)))
        assert file.convert("RGB").tobytes() == whole.crop((8, 4, 520, 516)).tobytes()
    assert not list((small_list / "out").rglob(".*"))


def test_photographs_to_choose_by_have_a_folder_of_their_own(
    small_list: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [replace(p, role="validation") for p in module.photographs() if p.crop is not None]
    monkeypatch.setattr(module, "photographs", lambda: entries)
    assert module.write_photographs(small_list / "out", small_list) == {"validation": 1}
    with Image.open(small_list / "out" / "validation" / "b.webp") as file:
        assert file.size == (CROP, CROP)
    assert [p.name for p in (small_list / "out").iterdir()] == ["validation"]


def test_a_role_that_does_not_exist_and_a_crop_in_the_wrong_place_are_refused() -> None:
    whole = next(p for p in photographs() if p.role == "train")
    with pytest.raises(ValueError, match="role is 'test'; it must be train, validation or held-"):
        replace(whole, role="test")
    with pytest.raises(ValueError, match=f"{whole.name}: a train photograph has no crop"):
        replace(whole, crop=(0, 0))
    for role in ("validation", "held-out"):
        with pytest.raises(ValueError, match="every other has one"):
            replace(whole, role=role)


def list_theme(small_list: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """A list whose one photograph lies in a theme with this content."""
    [photograph] = [p for p in module.photographs() if p.name == "a"]
    entry = replace(photograph, package="theme", path="usr/a.edj", member="edje/images/0")
    package(small_list, "theme", {"usr/a.edj": content})
    monkeypatch.setattr(module, "photographs", lambda: [entry])


def test_photographs_come_out_of_eet_archives(
    small_list: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"edje/images/1": png(7, 7), "edje/images/0": png(80, 50), "edje/file": b"groups"}
    list_theme(small_list, monkeypatch, eet_archive(others))
    module.write_photographs(small_list / "out", small_list)
    with Image.open(small_list / "out" / "train" / "a.png") as file:
        assert file.convert("RGB").tobytes() == Image.open(io.BytesIO(png(80, 50))).tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (eet_archive({"edje/file": b""}), "The EET archive has no entry edje/images/0"),
        (b"ZIP!", "hold edje/images/0 is neither a Qt resource file nor an EET archive"),
    ],
    ids=["member", "archive"],
)
def test_an_unknown_archive_and_a_missing_member_are_named(
    small_list: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    list_theme(small_list, monkeypatch, content)
    with pytest.raises(PhotographsUnavailable, match=message):
        module.write_photographs(small_list / "out", small_list)


def test_a_missing_package_or_file_ends_in_a_sentence_that_names_it(
    small_list: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_list / "plain_1_all.deb").unlink()
    arguments = [str(small_list / "out"), "--packages-dir", str(small_list)]
    assert main(arguments) == 1
    assert "plain_*.deb" in capsys.readouterr().err
    (small_list / "plain.root" / "DEBIAN" / "control").unlink()
    (small_list / "plain.root" / "DEBIAN").rmdir()
    (small_list / "plain.root" / "usr" / "a.png").unlink()
    package(small_list, "plain", {"usr/other.png": png(10, 10)})
    assert main(arguments) == 1
    assert "usr/a.png is not in this version of plain" in capsys.readouterr().err


def test_without_apt_get_the_command_says_what_to_do(
    small_list: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(small_list))
    with pytest.raises(PhotographsUnavailable, match=r"packed, plain.*--packages-dir"):
        module.write_photographs(small_list / "out")
