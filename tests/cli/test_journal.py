"""`stablesr upscale IN_DIR OUT_DIR`: what a run does, and what a later one does again."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import Result

from cli.errors import InputError, JobFailure
from models.checkpoints.files import partial_path
from stablesr_client import Result as DownloadedResult
from stablesr_client.files import PartialDownload
from tests.cli.fake_service import FakeService
from tests.cli.folders import NAMES, StubModel, last_states, names, results, running, upscale

# The command with a model that does nothing to the first images and then stops in the middle of
# writing, for ever.
STUB = """
import os, sys, time
import cli.local
from cli.main import app
from models.checkpoints.files import partial_path

class Stub:
    def __init__(self, settings, decode_tile):
        pass
    def upscale(self, source, targets, parameters, show):
        [target] = targets.values()
        aside = partial_path(target, str(os.getpid()))
        aside.write_bytes(b"half")
        if source.name == "c.png" and sys.argv[-1] == "hang":
            print("hanging", flush=True)
            time.sleep(600)
        aside.write_bytes(b"whole " + source.read_bytes() + str(parameters.seed).encode())
        aside.replace(target)
        return 1, 1

cli.local.LocalModel = Stub
app(sys.argv[1:-1])
"""


def journal(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / ".stablesr.jsonl").read_text().splitlines()]


def test_a_folder_is_done_by_one_model_and_keeps_its_shape(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    result = upscale(photos, out, "--scale", "2")
    assert result.exit_code == 0, result.output
    assert names(out) == ["a.png", "b.png", "sub/c.png"]
    assert model.count == 1
    seeds = {parameters.seed for _, parameters in model.requests}
    assert len(seeds) == 1
    assert {parameters.scale for _, parameters in model.requests} == {2.0}
    assert "3 images to do; 1 other file left alone; 1 hidden." in result.stderr
    assert "[3/3] sub/c.webp -> sub/c.png, 32 x 24 pixels" in result.stderr
    assert f"3 of 3 images done, 0 failed; preset tiny, seed {seeds.pop()}" in result.stderr


@pytest.mark.parametrize("how", ["local", "server"])
def test_a_second_run_does_nothing(
    photos: Path, out: Path, how: str, service: FakeService, model: type[StubModel]
) -> None:
    options = ["--server", service.url] if how == "server" else []
    upscale(photos, out, *options)
    before = {name: (out / name).stat().st_mtime_ns for name in names(out)}
    again = upscale(photos, out, *options)
    assert again.exit_code == 0
    assert "0 images to do, 3 done before" in again.stderr
    assert {name: (out / name).stat().st_mtime_ns for name in names(out)} == before
    assert len(service.uploads) + len(model.requests) == 3
    # No model is loaded for nothing.
    assert model.count == (how == "local")


def test_a_later_run_takes_the_seed_of_the_first(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    upscale(photos, out)
    Image.new("RGB", (8, 6), "red").save(photos / "d.png")
    upscale(photos, out)
    assert [name for name, _ in model.requests] == ["a.png", "b.JPG", "c.webp", "d.png"]
    assert len({parameters.seed for _, parameters in model.requests}) == 1


@pytest.mark.parametrize(
    ("change", "done"),
    [
        ("parameter", ["a.png", "b.JPG", "c.webp"]),
        ("seed", ["a.png", "b.JPG", "c.webp"]),
        ("format", ["a.png", "b.JPG", "c.webp"]),
        ("content", ["b.JPG"]),
        ("touched", []),
        ("result removed", ["a.png"]),
        ("result cut", ["c.webp"]),
        ("overwrite", ["a.png", "b.JPG", "c.webp"]),
    ],
)
def test_what_has_changed_is_done_again(
    photos: Path, out: Path, model: type[StubModel], change: str, done: list[str]
) -> None:
    upscale(photos, out, "--seed", "1")
    model.requests.clear()
    options = ["--seed", "2" if change == "seed" else "1"]
    if change == "parameter":
        options += ["--scale", "3"]
    elif change == "format":
        options += ["--format", "webp"]
    elif change == "overwrite":
        options += ["--overwrite"]
    elif change == "content":
        data = bytearray((photos / "b.JPG").read_bytes())
        data[-3] ^= 1
        (photos / "b.JPG").write_bytes(data)
    elif change == "touched":
        os.utime(photos / "b.JPG", (1, 1))
    elif change == "result removed":
        (out / "a.png").unlink()
    else:
        with (out / "sub/c.png").open("ab") as file:
            file.truncate(3)
    assert upscale(photos, out, *options).exit_code == 0
    assert [name for name, _ in model.requests] == done


def test_a_bad_image_never_stops_the_rest(photos: Path, out: Path, model: type[StubModel]) -> None:
    Image.new("RGB", (8, 6)).save(photos / "d.png")
    Image.new("RGB", (8, 6)).save(photos / "e.png")
    model.errors = {
        "a.png": InputError("a.png: The file is cut off [sic]."),
        "d.png": JobFailure("too large"),
        "e.png": ZeroDivisionError("an unforeseen error"),
    }
    result = upscale(photos, out)
    assert result.exit_code == 9
    assert names(out) == ["b.png", "sub/c.png"]
    end = result.stderr[result.stderr.index("Error:") :]
    assert "3 images failed" in end
    for words in ("a.png: The file is cut off [sic].", "d.png: too large", "an unforeseen error"):
        assert words in end
    failed = [line for line in journal(out) if line["state"] == "failed"]
    assert [line["input"] for line in failed] == ["a.png", "d.png", "e.png"]
    # They are tried again, and only they.
    model.requests.clear()
    model.errors.clear()
    assert upscale(photos, out).exit_code == 0
    assert [name for name, _ in model.requests] == ["a.png", "d.png", "e.png"]


@pytest.mark.parametrize("kind", ["file", "folder", "link to nothing"])
def test_what_cannot_be_read_is_a_failure_of_its_own(
    photos: Path, out: Path, model: type[StubModel], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "link to nothing":
        (photos / "a.png").unlink()
        (photos / "a.png").symlink_to("nowhere.png")
    elif os.geteuid() == 0:
        # Nothing is unreadable to root; so the calls are made to fail.
        _deny(monkeypatch, photos / ("a.png" if kind == "file" else "sub"))
    else:
        (photos / ("a.png" if kind == "file" else "sub")).chmod(0)
    result = upscale(photos, out)
    assert result.exit_code == 9
    faults = {"file": "a.png: Permission denied", "folder": "sub/: Permission denied"}
    assert faults.get(kind, "a.png: No such file or directory") in result.stderr
    assert names(out) == (["a.png", "b.png"] if kind == "folder" else ["b.png", "sub/c.png"])


def _deny(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    opened, scanned = Path.open, os.scandir

    def deny(given: Any) -> None:
        if Path(given) == path:
            raise PermissionError(13, "Permission denied", str(given))

    def open_(self: Path, *arguments: Any, **options: Any) -> Any:
        deny(self)
        return opened(self, *arguments, **options)

    def scandir(given: Any) -> Any:
        deny(given)
        return scanned(given)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(os, "scandir", scandir)


def test_a_journal_with_lines_cut_off_or_strange_is_still_read(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    upscale(photos, out)
    path = out / ".stablesr.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    # The last image's end is cut off, as when the machine lost its power.
    path.write_bytes(b"[1]\nnonsense\n" + b"".join(lines[:-1]) + lines[-1][:20])
    model.requests.clear()
    assert upscale(photos, out).exit_code == 0
    assert [name for name, _ in model.requests] == ["c.webp"]
    # The line that was cut off has spoilt no other.
    assert sum(not line.startswith(b"{") for line in path.read_bytes().splitlines()) == 2
    torn = [line for line in path.read_bytes().splitlines() if not line.endswith(b"}")]
    assert torn == [b"[1]", b"nonsense", lines[-1][:20]]
    model.requests.clear()
    assert upscale(photos, out).exit_code == 0
    assert model.requests == []


def test_only_one_run_works_in_a_folder(
    photos: Path, out: Path, model: type[StubModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    second: list[Result] = []
    first = StubModel.upscale

    def meanwhile(self: StubModel, *arguments: Any) -> tuple[int, int]:
        if not second:
            second.append(upscale(photos, out))
        return first(self, *arguments)

    monkeypatch.setattr(StubModel, "upscale", meanwhile)
    assert upscale(photos, out).exit_code == 0
    assert second[0].exit_code == 3
    assert "Another run is at work" in second[0].stderr


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOLCK, 0, "cannot be locked (No locks available)"),
        (errno.EOPNOTSUPP, 0, "cannot be locked (Operation not supported)"),
        (errno.EACCES, 3, "Another run is at work"),
    ],
)
def test_a_folder_that_cannot_be_locked_is_worked_in_with_a_warning(
    photos: Path,
    out: Path,
    model: type[StubModel],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
    words: str,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    result = upscale(photos, out)
    assert result.exit_code == code
    assert words in result.stderr
    assert len(model.requests) == (3 if code == 0 else 0)


def test_what_a_killed_download_left_is_removed(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    model.errors = {"a.png": InputError("broken")}
    upscale(photos, out)
    path = out / ".stablesr.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with PartialDownload(out / "a.png", DownloadedResult(width=1, height=1, bytes=1)):
        [part] = out.glob(".*.part")
    part.write_bytes(b"half")
    model.errors.clear()
    assert upscale(photos, out, "--overwrite").exit_code == 0
    assert not list(out.glob(".*.part"))


def test_a_run_killed_while_it_writes_goes_on_with_the_image_it_was_at(
    many_photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("-c", STUB, "upscale", str(many_photos), str(out))
    with running(*command, "hang") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=100)
    part = partial_path(out / "c.png", str(process.pid)).name
    assert results(out) == [part, "a.png", "b.png"]
    assert last_states(out) == {"a.png": "done", "b.png": "done", "c.png": "begun"}
    first = {name: (out / name).stat().st_mtime_ns for name in ("a.png", "b.png")}

    with running(*command, "go") as again:
        output = again.communicate(timeout=100)[1]
    assert again.returncode == 0, output
    assert "4 of 4 images done, 2 before, 0 failed" in output
    assert results(out) == list(NAMES)
    assert {name: (out / name).stat().st_mtime_ns for name in first} == first
    # One seed for all, those of the killed run too.
    assert len({(out / name).read_bytes().rpartition(b"IEND")[2] for name in NAMES}) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_on_this_machine_says_how_to_go_on(
    many_photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = ("-c", STUB, "upscale", str(many_photos), str(tmp_path / "out"), "hang")
    with running(*command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(number)
        output = process.communicate(timeout=100)[1]
    assert process.returncode == 130, output
    assert "2 of 6 images done, 0 failed. The same command goes on from here." in output
