"""`stablesr upscale IN_DIR OUT_DIR`: what is done, what is left alone, what a second run does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import Result

from cli.errors import InputError, JobFailed
from cli.local import Written
from tests.cli.fake_service import FakeService, result_of
from tests.cli.folders import StubModel, names, upscale
from tests.scripted_server import Script


@pytest.fixture
def service(script: Script) -> FakeService:
    return FakeService(script)


def journal(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / ".stablesr.jsonl").read_text().splitlines()]


def test_a_folder_is_done_by_one_model_and_keeps_its_shape(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    result = upscale(photos, out, "--scale", "2")
    assert result.exit_code == 0, result.output
    assert names(out) == ["a.png", "b.png", "sub/c.png"]
    assert model.loaded == 1
    seeds = {parameters.seed for _, parameters in model.asked}
    assert len(seeds) == 1
    assert {parameters.scale for _, parameters in model.asked} == {2.0}
    assert "3 images to do; 1 other file left alone." in result.stderr
    assert "[3/3] sub/c.webp -> sub/c.png, 32 x 24 pixels" in result.stderr
    assert f"3 of 3 images done, 0 failed; preset tiny, seed {seeds.pop()}" in result.stderr


def test_a_folder_is_done_by_a_server_several_at_once(
    photos: Path, out: Path, service: FakeService
) -> None:
    result = upscale(photos, out, "--server", service.url, "--seed", "5", "--parallel", "2")
    assert result.exit_code == 0, result.output
    assert names(out) == ["a.png", "b.png", "sub/c.png"]
    fields = {"preset": "tiny", "seed": "5", "output_format": "png"}
    assert (out / "a.png").read_bytes() == result_of((photos / "a.png").read_bytes(), fields)
    assert service.at_once <= 2


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
    assert len(service.uploads) + len(model.asked) == 3
    # No model is loaded for nothing.
    assert model.loaded == (how == "local")


def test_what_a_server_did_counts_on_this_machine_too(
    photos: Path, out: Path, service: FakeService, model: type[StubModel]
) -> None:
    upscale(photos, out, "--server", service.url)
    upscale(photos, out)
    assert model.asked == []


def test_a_later_run_takes_the_seed_of_the_first(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    upscale(photos, out)
    Image.new("RGB", (8, 6), "red").save(photos / "d.png")
    upscale(photos, out)
    assert [name for name, _ in model.asked] == ["a.png", "b.JPG", "c.webp", "d.png"]
    assert len({parameters.seed for _, parameters in model.asked}) == 1


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
    model.asked.clear()
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
    assert [name for name, _ in model.asked] == done


def test_a_bad_image_never_stops_the_rest(photos: Path, out: Path, model: type[StubModel]) -> None:
    Image.new("RGB", (8, 6)).save(photos / "d.png")
    Image.new("RGB", (8, 6)).save(photos / "e.png")
    model.broken = {
        "a.png": InputError("a.png: The file is cut off [sic]."),
        "d.png": JobFailed("too large"),
        "e.png": ZeroDivisionError("what nobody foresaw"),
    }
    result = upscale(photos, out)
    assert result.exit_code == 9
    assert names(out) == ["b.png", "sub/c.png"]
    end = result.stderr[result.stderr.index("Error:") :]
    assert "3 images failed" in end
    for words in ("a.png: The file is cut off [sic].", "d.png: too large", "what nobody foresaw"):
        assert words in end
    failed = [line for line in journal(out) if line["state"] == "failed"]
    assert [line["input"] for line in failed] == ["a.png", "d.png", "e.png"]
    # They are tried again, and only they.
    model.asked.clear()
    model.broken.clear()
    assert upscale(photos, out).exit_code == 0
    assert [name for name, _ in model.asked] == ["a.png", "d.png", "e.png"]


def test_a_server_may_refuse_one_image_and_fail_another(
    photos: Path, out: Path, service: FakeService
) -> None:
    service.refuse, service.fail = {"a.png"}, {"b.JPG"}
    result = upscale(photos, out, "--server", service.url)
    assert result.exit_code == 9
    assert names(out) == ["sub/c.png"]
    assert "a.png failed: The image is cut off" in result.stderr
    assert "The worker broke" in result.stderr
    service.refuse, service.fail = set(), set()
    assert upscale(photos, out, "--server", service.url).exit_code == 0
    assert sorted(service.uploads) == ["a.png", "a.png", "b.JPG", "b.JPG", "c.webp"]


def test_what_would_meet_every_image_ends_the_run_at_once(
    photos: Path, out: Path, service: FakeService
) -> None:
    service.unauthorized = True
    result = upscale(photos, out, "--server", service.url)
    assert result.exit_code == 5
    assert "The API key is wrong" in result.stderr
    assert "0 of 3 images done, 0 failed. The same command goes on from here." in result.stderr


@pytest.mark.parametrize(
    ("server", "code"), [("http://127.0.0.1:1", 4), ("localhost:8000", 2)], ids=["dead", "wrong"]
)
@pytest.mark.parametrize("preset", [[], ["--preset", "tiny"]], ids=["", "preset"])
def test_a_server_that_is_not_there_is_told_before_anything_is_made(
    photos: Path, out: Path, server: str, code: int, preset: list[str]
) -> None:
    assert upscale(photos, out, "--server", server, *preset).exit_code == code
    assert not out.exists()


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
    said = {"file": "a.png: Permission denied", "folder": "sub/: Permission denied"}
    assert said.get(kind, "a.png: No such file or directory") in result.stderr
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
    model.asked.clear()
    assert upscale(photos, out).exit_code == 0
    assert [name for name, _ in model.asked] == ["c.webp"]
    # The line that was cut off has spoilt no other.
    assert sum(not line.startswith(b"{") for line in path.read_bytes().splitlines()) == 2
    torn = [line for line in path.read_bytes().splitlines() if not line.endswith(b"}")]
    assert torn == [b"[1]", b"nonsense", lines[-1][:20]]
    model.asked.clear()
    assert upscale(photos, out).exit_code == 0
    assert model.asked == []


def test_only_one_run_works_in_a_folder(
    photos: Path, out: Path, model: type[StubModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    second: list[Result] = []
    made = StubModel.upscale

    def meanwhile(self: StubModel, *arguments: Any) -> list[Written]:
        if not second:
            second.append(upscale(photos, out))
        return made(self, *arguments)

    monkeypatch.setattr(StubModel, "upscale", meanwhile)
    assert upscale(photos, out).exit_code == 0
    assert second[0].exit_code == 3
    assert "Another run is at work" in second[0].stderr
