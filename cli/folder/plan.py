"""Which images a folder has, and where the result of each goes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cli.errors import InputError
from cli.view import printable
from stablesr_client.files import FORMATS

__all__ = ["SHOWN", "Fault", "Item", "Plan", "images", "make_plan"]

SUFFIXES = frozenset({*FORMATS, ".avif"})
"""How the name of a file ends that is taken for an image; every other file is left alone."""

OUTPUT_SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg", "tiff": ".tif"}
SHOWN = 5
"""Names in a message that could list thousands."""


@dataclass(frozen=True)
class Item:
    """An image and where its result goes; `name` and `output` are relative to the two folders."""

    name: str
    source: Path
    size: int
    mtime_ns: int
    output: str
    target: Path
    output_format: str


@dataclass(frozen=True)
class Fault:
    """An image, or a folder of them, that cannot even be begun, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a folder holds; `others` counts the files that are no images by their name."""

    items: tuple[Item, ...]
    faults: tuple[Fault, ...]
    others: int


def make_plan(source: Path, target: Path, *, output_format: str, recursive: bool) -> Plan:
    """Looks through `source`; the results keep its sub-folders and names under `target`.

    Hidden files and folders are passed over, links to folders are not followed, and `target` may
    lie within `source`: its files are no inputs.

    Args:
        output_format: "png", "webp", "jpeg" or "tiff", or "same" for each image's own.

    Raises:
        InputError: `target` is a file, results would lie among the inputs, or two images would
            have one result.
    """
    _check_folders(source, target)
    root, out = source.resolve(), target.resolve()
    items: list[Item] = []
    faults: list[Fault] = []
    others = 0
    for path in _files(source, out if out.is_relative_to(root) else None, recursive, faults):
        name, suffix = path.relative_to(source).as_posix(), path.suffix.lower()
        try:
            status = path.stat() if suffix in SUFFIXES else None
        except OSError as error:
            faults.append(Fault(name, error.strerror or str(error)))
            continue
        if status is None or not stat.S_ISREG(status.st_mode):
            others += 1
            continue
        same = output_format == "same"
        item_format = FORMATS.get(suffix, "") if same else output_format
        if not item_format:
            reason = f"results cannot be {path.suffix}; --format says what they shall be"
            faults.append(Fault(name, reason))
            continue
        output_suffix = path.suffix if same else OUTPUT_SUFFIXES[item_format]
        output = PurePosixPath(name).with_suffix(output_suffix).as_posix()
        size, mtime_ns = status.st_size, status.st_mtime_ns
        items.append(Item(name, path, size, mtime_ns, output, target / output, item_format))
    _check_outputs(items, root, out)
    return Plan(tuple(items), tuple(faults), others)


def images(count: int) -> str:
    """The number with its word."""
    return f"{count} image{'s' * (count != 1)}"


def _files(
    source: Path, without: Path | None, recursive: bool, faults: list[Fault]
) -> Iterator[Path]:
    """All files that are not hidden, in order of their names; unreadable folders are faults."""

    def unreadable(error: OSError) -> None:
        folder = Path(error.filename)
        name = "." if folder == source else folder.relative_to(source).as_posix()
        faults.append(Fault(f"{name}/", error.strerror or str(error)))

    for folder, folders, files in os.walk(source, onerror=unreadable):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if recursive and not name.startswith(".") and (here / name).resolve() != without
        )
        yield from (here / name for name in sorted(files) if not name.startswith("."))


def _check_folders(source: Path, target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{source} is a folder, so {target} must be one too; it is a file.")
    if target.resolve() == source.resolve():
        raise InputError(
            f"The results would lie among the images of {source}; name another folder, "
            f"such as {source / 'upscaled'}."
        )


def _check_outputs(items: list[Item], root: Path, out: Path) -> None:
    inputs: dict[str, list[str]] = {}
    for item in items:
        inputs.setdefault(item.output, []).append(item.name)
    shared = [f"{' and '.join(names)} -> {to}" for to, names in inputs.items() if len(names) > 1]
    if shared:
        more = f", and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
        raise InputError(
            "Several images would have one result: "
            + printable("; ".join(shared[:SHOWN]))
            + f"{more}. Rename one of each, or take --format same."
        )
    if root.is_relative_to(out):
        within = [item.output for item in items if (out / item.output).is_relative_to(root)]
        if within:
            raise InputError(
                f"The result {printable(within[0])} would lie among the images of {root}; "
                "name another folder for the results."
            )
