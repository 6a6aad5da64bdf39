"""Free photographs to train and to judge on, taken from Debian packages.

`photographs.json` lists every photograph: the package and the file in it (and, for a Qt
resource file or an EET archive, the member), the longer side after reduction in pixels, the author,
the licence, and the role. "train" photographs are written whole; the others are not trained on, and
only the crop to judge by is written: "validation" ones choose between variants, "held-out" ones are
measured once, at the end. Sources are reduced by Lanczos until they are sharp pixel by
pixel: a blurred target would teach blur.

    python -m tools.photographs OUT_DIR [--packages-dir DIR]
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from models.checkpoints.files import write_aside
from models.errors import ModelError

LIST = Path(__file__).with_name("photographs.json")
CROP = 512  # side of a held-out crop, in pixels
_EET = bytes.fromhex("1ee70f42")


class PhotographsUnavailable(ModelError):
    """A package or a photograph in it cannot be had; the message says which and what to do."""


@dataclass(frozen=True)
class Photograph:
    """One line of the list. `side` is the longer side in pixels that it is reduced to."""

    name: str
    package: str
    path: str
    side: int
    role: str
    author: str
    licence: str
    source: str = ""
    member: str = ""
    crop: tuple[int, int] | None = None
    seen: tuple[int, ...] = ()
    """Versions of the shipped weights that learned from it before it was held out."""

    def __post_init__(self) -> None:
        if self.role not in ("train", "validation", "held-out"):
            raise ValueError(
                f"{self.name}: role is {self.role!r}; it must be train, validation or held-out"
            )
        if (self.crop is None) != (self.role == "train"):
            raise ValueError(f"{self.name}: a train photograph has no crop, every other has one")


def photographs(path: Path = LIST) -> list[Photograph]:
    """The committed list, in its order."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    for entry in entries:
        for name in ("crop", "seen"):
            if name in entry:
                entry[name] = tuple(entry[name])  # JSON has no tuples
    return [Photograph(**entry) for entry in entries]


def write_photographs(out: Path, packages_dir: Path | None = None) -> dict[str, int]:
    """Write `out/train/NAME.png`, `out/validation/NAME.webp` and `out/held-out/NAME.webp`; returns
    how many of each role.

    `packages_dir` holds the packages as `NAME_VERSION_ARCH.deb`; without it they are fetched with
    `apt-get download`. Raises PhotographsUnavailable.
    """
    entries = photographs()
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="photographs-") as scratch:
        names = sorted({p.package for p in entries})
        if packages_dir is None:
            packages_dir = Path(scratch) / "packages"
            _fetch(names, packages_dir)
        roots = {n: _unpack(n, packages_dir, Path(scratch) / n) for n in names}
        for photograph in entries:
            image = _read(photograph, roots[photograph.package])
            folder = out / photograph.role
            folder.mkdir(parents=True, exist_ok=True)
            if photograph.crop is None:
                _save(image, folder / f"{photograph.name}.png")
            else:
                x, y = photograph.crop
                if x + CROP > image.width or y + CROP > image.height:
                    raise PhotographsUnavailable(
                        f"The crop of {photograph.name} at {x},{y} leaves the image, which is "
                        f"{image.width} x {image.height} here: the package has another version."
                    )
                _save(image.crop((x, y, x + CROP, y + CROP)), folder / f"{photograph.name}.webp")
            counts[photograph.role] = counts.get(photograph.role, 0) + 1
    return counts


def _fetch(names: Sequence[str], folder: Path) -> None:
    apt = shutil.which("apt-get")
    if apt is None:
        raise PhotographsUnavailable(
            "apt-get is not on this machine: fetch the Debian 12 packages "
            f"{', '.join(names)} elsewhere and name their folder with --packages-dir."
        )
    folder.mkdir(parents=True)
    process = subprocess.run([apt, "download", *names], cwd=folder, capture_output=True, text=True)
    if process.returncode:
        raise PhotographsUnavailable(f"apt-get download failed: {process.stderr.strip()}")


def _unpack(name: str, packages: Path, target: Path) -> Path:
    files = sorted(packages.glob(f"{name}_*.deb"))
    if len(files) != 1:
        raise PhotographsUnavailable(
            f"{packages} holds {len(files)} files {name}_*.deb; it must hold exactly one."
        )
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise PhotographsUnavailable("dpkg-deb is not on this machine; it comes with dpkg.")
    process = subprocess.run([tool, "-x", files[0], target], capture_output=True, text=True)
    if process.returncode:
        raise PhotographsUnavailable(
            f"{files[0].name} cannot be unpacked: {process.stderr.strip()}"
        )
    return target


def _read(photograph: Photograph, root: Path) -> Image.Image:
    path = root / photograph.path
    if not path.is_file():
        raise PhotographsUnavailable(
            f"{photograph.path} is not in this version of {photograph.package}; "
            "the list was made with Debian 12's."
        )
    data = path.read_bytes()
    if photograph.member:
        data = _member(data, photograph.member)
    with Image.open(io.BytesIO(data)) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    ratio = photograph.side / max(image.size)
    if ratio >= 1:
        return image
    size = (round(image.width * ratio), round(image.height * ratio))
    return image.resize(size, Image.Resampling.LANCZOS)


def _member(data: bytes, member: str) -> bytes:
    """The bytes of one member of an archive, told by its first bytes."""
    if data[:4] == b"qres":
        return _resource(data, member)
    if data[:4] == _EET:
        return _entry(data, member)
    raise PhotographsUnavailable(
        f"The file that should hold {member} is neither a Qt resource file nor an EET archive."
    )


def _entry(data: bytes, member: str) -> bytes:
    """The bytes of one entry of an EET archive (Enlightenment's themes).

    A header of three numbers (magic, entries, dictionaries), then six for each entry: offset and
    size of the data, flags, offset and length of the name, and a hash; all big-endian.
    """
    (entries,) = struct.unpack_from(">I", data, 4)
    for at in range(entries):
        offset, size, _, name, length = struct.unpack_from(">5I", data, 12 + 24 * at)
        if data[name : name + length].rstrip(b"\0") == member.encode():
            return data[offset : offset + size]
    raise PhotographsUnavailable(f"The EET archive has no entry {member}.")


def _resource(data: bytes, member: str) -> bytes:
    """The bytes of one member of a compiled Qt resource file (versions 1 to 3).

    A tree of fixed-size nodes (name offset, flags, then children or a data offset), a table of
    UTF-16 names, and length-prefixed data; all numbers big-endian.
    """
    version, tree, payload, names = struct.unpack_from(">4I", data, 4)
    width = 14 if version < 2 else 22

    def name(node: int) -> str:
        offset = names + struct.unpack_from(">I", data, tree + node * width)[0]
        length = struct.unpack_from(">H", data, offset)[0]
        return data[offset + 6 : offset + 6 + 2 * length].decode("utf-16-be")

    node, flags = 0, 2
    for part in member.split("/"):
        count, first = struct.unpack_from(">II", data, tree + node * width + 6)
        children = {name(n): n for n in range(first, first + count)} if flags & 2 else {}
        if part not in children:
            raise PhotographsUnavailable(f"The Qt resource file has no member {member}.")
        node = children[part]
        flags = struct.unpack_from(">H", data, tree + node * width + 4)[0]
    start = payload + struct.unpack_from(">I", data, tree + node * width + 10)[0]
    length = struct.unpack_from(">I", data, start)[0]
    content = data[start + 4 : start + 4 + length]
    return zlib.decompress(content[4:]) if flags & 1 else content


def _save(image: Image.Image, path: Path) -> None:
    with write_aside(path) as aside:
        if path.suffix == ".webp":
            image.save(aside, "WEBP", lossless=True, method=6)
        else:
            image.save(aside, "PNG")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.photographs")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--packages-dir", type=Path, help="folder of packages already fetched")
    options = parser.parse_args(arguments)
    try:
        counts = write_photographs(options.out, options.packages_dir)
    except PhotographsUnavailable as problem:
        print(problem, file=sys.stderr)
        return 1
    print(", ".join(f"{count} {role}" for role, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
