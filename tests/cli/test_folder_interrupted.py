"""A folder's run that is killed or interrupted, as a real process, and the one that goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.fake_service import FakeService
from tests.scripted_server import Answer, Script

NAMES = ("a.png", "b.png", "c.png", "d.png", "e.png", "f.png")

# The command with a model that does nothing to the first images and then stops in the middle of
# writing, for ever.
STUB = """
import os, sys, time
from cli.folder import run
from cli.local import Written
from cli.main import app

class Stub:
    def __init__(self, settings):
        pass
    def upscale(self, source, targets, parameters, show):
        [target] = targets.values()
        aside = target.with_name(f".{target.name}.{os.getpid()}.part")
        aside.write_bytes(b"half")
        if source.name == "c.png" and sys.argv[-1] == "hang":
            print("hanging", flush=True)
            time.sleep(600)
        aside.write_bytes(b"whole " + source.read_bytes() + str(parameters.seed).encode())
        aside.replace(target)
        return [Written(1, 1, target.stat().st_size)]

run.LocalModel = Stub
app(sys.argv[1:-1])
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / name)
    return folder


@pytest.fixture
def service(script: Script) -> Iterator[FakeService]:
    service = FakeService(script)
    yield service
    # What still waits for a job's end must not keep the server's threads.
    service.release()


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ran(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False
    )


def states(out: Path) -> dict[str, str]:
    """The last state of each image in the journal."""
    lines = [json.loads(line) for line in (out / ".stablesr.jsonl").read_text().splitlines()]
    return {line["input"]: line["state"] for line in lines if "input" in line}


def results(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.name != ".stablesr.jsonl")


def test_a_run_killed_while_it_writes_goes_on_with_the_image_it_was_at(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("-c", STUB, "upscale", str(photos), str(out))
    with running(*command, "hang") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=100)
    assert results(out) == [f".c.png.{process.pid}.part", "a.png", "b.png"]
    assert states(out) == {"a.png": "done", "b.png": "done", "c.png": "begun"}
    first = {name: (out / name).stat().st_mtime_ns for name in ("a.png", "b.png")}

    again = ran(*command, "go")
    assert again.returncode == 0, again.stderr
    assert "4 of 4 images done, 2 before, 0 failed" in again.stderr
    assert results(out) == list(NAMES)
    assert {name: (out / name).stat().st_mtime_ns for name in first} == first
    # One seed for all, those of the killed run too.
    assert len({(out / name).read_bytes().rpartition(b"IEND")[2] for name in NAMES}) == 1


def test_a_run_killed_while_a_server_works_takes_up_the_very_jobs(
    photos: Path, tmp_path: Path, service: FakeService
) -> None:
    out = tmp_path / "out"
    command = ("-m", "cli", "upscale", str(photos), str(out), "--server", service.url)
    service.hold = {"c.png", "d.png"}
    with running(*command, "--parallel", "2") as process:
        service.wait_for_uploads("c.png", "d.png")
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=100)
    assert set(results(out)) <= {"a.png", "b.png"}
    service.release()

    again = ran(*command)
    assert again.returncode == 0, again.stderr
    assert results(out) == list(NAMES)
    # Each image became one job, though some were submitted twice.
    assert service.states() == {name: ["succeeded"] for name in NAMES}
    assert service.uploads.count("c.png") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_cancels_the_jobs_under_way_and_the_next_run_goes_on(
    photos: Path, tmp_path: Path, service: FakeService, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = ("-m", "cli", "upscale", str(photos), str(out), "--server", service.url)
    service.hold = {"b.png", "c.png", "d.png"}
    with running(*command, "--parallel", "3") as process:
        service.wait_for_followers("b.png", "c.png", "d.png")
        process.send_signal(number)
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 130, said
    assert "The same command goes on from here." in said
    assert "Traceback" not in said
    assert {name: found for name, found in service.states().items() if name > "a.png"} == {
        name: ["canceled"] for name in ("b.png", "c.png", "d.png")
    }
    assert states(out)["c.png"] == "stopped"

    service.hold.clear()
    again = ran(*command)
    assert again.returncode == 0, again.stderr
    assert "before, 0 failed" in again.stderr
    assert results(out) == list(NAMES)
    assert service.states()["c.png"] == ["canceled", "succeeded"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_on_this_machine_says_how_to_go_on(
    photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = ("-c", STUB, "upscale", str(photos), str(tmp_path / "out"), "hang")
    with running(*command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(number)
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 130, said
    assert "2 of 6 images done, 0 failed. The same command goes on from here." in said


def test_ctrl_c_cancels_a_job_whose_id_is_still_on_its_way(
    photos: Path, tmp_path: Path, service: FakeService, script: Script
) -> None:
    out = tmp_path / "out"
    service.hold = {"a.png"}
    handle = script.handle
    answered = threading.Event()

    def late(call: str, headers: dict[str, str], body: bytes) -> Answer | None:
        answer = handle(call, headers, body)
        if call == "POST /upscale":
            answered.wait(30)
        return answer

    script.handle = late
    command = ("-m", "cli", "upscale", str(photos), str(out), "--server", service.url)
    with running(*command, "--parallel", "1") as process:
        service.wait_for_uploads("a.png")
        process.send_signal(signal.SIGINT)
        answered.set()
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 130, said
    assert service.states() == {"a.png": ["canceled"]}


def test_a_job_that_cannot_be_canceled_is_taken_up_by_the_next_run(
    photos: Path, tmp_path: Path, service: FakeService, script: Script
) -> None:
    out = tmp_path / "out"
    command = ("-m", "cli", "upscale", str(photos), str(out), "--server", service.url)
    service.hold = {"b.png"}
    handle = script.handle
    with running(*command, "--parallel", "1") as process:
        service.wait_for_uploads("b.png")
        # From now on every request is cut off; the client would try again for a minute.
        script.handle = lambda *_: None
        script.answers.clear()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 130, said
    assert states(out)["b.png"] == "begun"
    script.handle = handle
    service.release()
    again = ran(*command)
    assert again.returncode == 0, again.stderr
    assert service.states()["b.png"] == ["succeeded"]
