"""Which images a folder has, and where the result of each goes."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from cli.errors import InputError
from cli.options import UpscaleOptions
from cli.view import printable
from jobs.errors import UnsupportedFormat
from jobs.formats import format_of, kind_of
from stablesr_client.files import FORMATS

_OTHERS = (".bmp", ".gif", ".heic", ".heif", ".jp2")
SUFFIXES = frozenset((*FORMATS, *_OTHERS))
"""How the name of a file ends that is taken for an image; every other file is left alone."""

LOOKED_AT = 500
"""Files that are no images by their name of which a run says what they are."""

OUTPUT_SUFFIXES = {
    **{"png": ".png", "webp": ".webp", "avif": ".avif"},
    **{"jpeg": ".jpg", "tiff": ".tif"},
}


@dataclass(frozen=True)
class Item:
    """An image and where its result goes; `name` and `output` are relative to the two folders, and
    `scale` is the one that fits where what is asked for does not."""

    name: str
    source: Path
    size: int
    mtime_ns: int
    output: str
    target: Path
    output_format: str
    scale: float | None = None


@dataclass
class Plan:
    """What a folder holds: images, by name why an image or a folder of them cannot be upscaled,
    the files that are no images by their name, and the number of hidden ones."""

    items: list[Item]
    faults: dict[str, str]
    others: dict[str, Path]
    hidden: int = 0


def make_plan(options: UpscaleOptions) -> Plan:
    """Looks through the source; the results keep its sub-folders and names under the target.

    Hidden files and folders are passed over, links to folders are not followed, and the target may
    lie within the source: its files are no inputs.

    Raises:
        InputError: the target is a file, results would lie among the inputs, or two images would
            have one result.
    """
    source, target, recursive = options.source, options.target, options.recursive is not False
    if os.path.exists(target) and not target.is_dir():
        raise InputError(f"{source} is a folder, so {target} must be one too; it is a file.")
    root, out = source.resolve(), target.resolve()
    if out == root:
        raise InputError(
            f"The results would lie among the images of {source}; name another folder, "
            f"such as {source / 'upscaled'}."
        )
    plan = Plan([], {}, {})
    # The nearest folder that is there can tell which names its file system takes.
    existing = next(path for path in (out, *out.parents) if os.path.isdir(path))
    for path in _files(source, out, recursive, plan):
        name, suffix = path.relative_to(source).as_posix(), path.suffix.lower()
        try:
            status = path.stat() if suffix in SUFFIXES else None
        except OSError as error:
            plan.faults[name] = error.strerror or str(error)
            continue
        if status is None or not stat.S_ISREG(status.st_mode):
            plan.others[name] = path
            continue
        same = options.output_format == "same"
        item_format = FORMATS.get(suffix, "") if same else options.output_format or "png"
        if not item_format:
            plan.faults[name] = f"results cannot be {path.suffix}; --format says what they shall be"
            continue
        output_suffix = path.suffix if same else OUTPUT_SUFFIXES[item_format]
        output = PurePosixPath(name).with_suffix(output_suffix).as_posix()
        try:
            with suppress(FileNotFoundError):
                (existing / PurePosixPath(output).name).lstat()
        # Such as a name that is too long.
        except OSError as error:
            why = f"its result cannot have its name and {output_suffix}: {error.strerror}"
            plan.faults[name] = why
            continue
        file = (name, path, status.st_size, status.st_mtime_ns)
        plan.items.append(Item(*file, output, target / output, item_format))
    _check_outputs(plan.items, root, out)
    return plan


def images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def left_alone(plan: Plan) -> str:
    """A line for each kind of the files that are no images by their name, as their first bytes
    tell; of many files the first are looked at."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in islice(plan.others, LOOKED_AT):
        kinds[_kind(plan.others[name])].append(name)
    lines = [f"{list_names(names, ', ', ' and ')}: {kind}" for kind, names in kinds.items()]
    if (more := len(plan.others) - LOOKED_AT) > 0:
        lines.append(f"{more} more")
    return "".join(f"\n  {line}" for line in lines)


def _kind(path: Path) -> str:
    try:
        if not path.is_file():
            return "no file"
        with path.open("rb") as file:
            head = file.read(32)
        name, _ = format_of(head)
    except UnsupportedFormat:
        return kind_of(head) or "no image"
    except OSError as error:
        return error.strerror or str(error)
    if name == "TIFF":
        return "a camera's raw file, or a TIFF file; develop it, or end its name in .tif"
    return f"{name} by its content; end its name as such images do"


def list_names(names: list[str], separator: str, conjunction: str) -> str:
    """The first of what could be thousands of names, for a message."""
    more = f"{conjunction}{len(names) - 5} more" if len(names) > 5 else ""
    return printable(separator.join(names[:5])) + more


def _files(source: Path, output: Path, recursive: bool, plan: Plan) -> Iterator[Path]:
    """All files that are not hidden or `output`'s, by name; hidden ones are counted, unreadable
    folders are faults."""

    def note(error: OSError) -> None:
        name = Path(error.filename).relative_to(source).as_posix()
        plan.faults[f"{name}/"] = error.strerror or str(error)

    for folder, folders, files in os.walk(source, onerror=note):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if recursive and not name.startswith(".") and (here / name).resolve() != output
        )
        visible = sorted(name for name in files if not name.startswith("."))
        plan.hidden += len(files) - len(visible)
        yield from (here / name for name in visible)


def _check_outputs(items: list[Item], root: Path, out: Path) -> None:
    inputs: dict[str, list[str]] = defaultdict(list)
    for item in items:
        inputs[item.output].append(item.name)
    clashes = [f"{' and '.join(names)} -> {to}" for to, names in inputs.items() if len(names) > 1]
    if clashes:
        raise InputError(
            f"Several images would have one result: {list_names(clashes, '; ', ', and ')}. "
            "Rename one of each, or take --format same."
        )
    if root.is_relative_to(out):
        for output in inputs:
            if (out / output).is_relative_to(root):
                raise InputError(
                    f"The result {printable(output)} would lie among the images of {root}; "
                    "name another folder for the results."
                )
