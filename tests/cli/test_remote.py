"""A folder through a server: several images at once, refusals, and runs that are interrupted."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from tests.cli.fake_service import FakeService, result_of
from tests.cli.folders import NAMES, StubModel, last_states, names, results, running, upscale
from tests.scripted_server import Answer, Script


def test_a_folder_is_done_by_a_server_several_at_once(
    photos: Path, out: Path, service: FakeService
) -> None:
    result = upscale(photos, out, "--server", service.url, "--seed", "5", "--parallel", "2")
    assert result.exit_code == 0, result.output
    assert names(out) == ["a.png", "b.png", "sub/c.png"]
    fields = {"preset": "tiny", "seed": "5", "output_format": "png", "metadata": "keep"}
    assert (out / "a.png").read_bytes() == result_of((photos / "a.png").read_bytes(), fields)
    assert service.at_once <= 2


def test_what_a_server_did_counts_on_this_machine_too(
    photos: Path, out: Path, service: FakeService, model: type[StubModel]
) -> None:
    upscale(photos, out, "--server", service.url)
    upscale(photos, out)
    assert model.requests == []


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


def test_a_run_killed_while_a_server_works_takes_up_the_very_jobs(
    many_photos: Path, tmp_path: Path, service: FakeService
) -> None:
    out = tmp_path / "out"
    command = ("-m", "cli", "upscale", str(many_photos), str(out), "--server", service.url)
    service.hold = {"c.png", "d.png"}
    with running(*command, "--parallel", "2") as process:
        service.wait_for_uploads("c.png", "d.png")
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=100)
    assert set(results(out)) <= {"a.png", "b.png"}
    service.release()

    again = upscale(many_photos, out, "--server", service.url)
    assert again.exit_code == 0, again.output
    assert results(out) == list(NAMES)
    # Each image became one job, though some were submitted twice.
    assert service.states() == {name: ["succeeded"] for name in NAMES}
    assert service.uploads.count("c.png") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_cancels_the_jobs_under_way_and_the_next_run_goes_on(
    many_photos: Path, tmp_path: Path, service: FakeService, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = ("-m", "cli", "upscale", str(many_photos), str(out), "--server", service.url)
    service.hold = {"b.png", "c.png", "d.png"}
    with running(*command, "--parallel", "3") as process:
        service.wait_for_followers("b.png", "c.png", "d.png")
        process.send_signal(number)
        output = process.communicate(timeout=100)[1]
    assert process.returncode == 130, output
    assert "The same command goes on from here." in output
    assert "Traceback" not in output
    assert {name: found for name, found in service.states().items() if name > "a.png"} == {
        name: ["canceled"] for name in ("b.png", "c.png", "d.png")
    }
    assert last_states(out)["c.png"] == "stopped"

    service.hold.clear()
    again = upscale(many_photos, out, "--server", service.url)
    assert again.exit_code == 0, again.output
    assert "before, 0 failed" in again.stderr
    assert results(out) == list(NAMES)
    assert service.states()["c.png"] == ["canceled", "succeeded"]


def test_ctrl_c_cancels_a_job_whose_id_is_still_on_its_way(
    many_photos: Path, tmp_path: Path, service: FakeService, script: Script
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
    command = ("-m", "cli", "upscale", str(many_photos), str(out), "--server", service.url)
    with running(*command, "--parallel", "1") as process:
        service.wait_for_uploads("a.png")
        process.send_signal(signal.SIGINT)
        answered.set()
        output = process.communicate(timeout=100)[1]
    assert process.returncode == 130, output
    assert service.states() == {"a.png": ["canceled"]}


def test_a_job_that_cannot_be_canceled_is_taken_up_by_the_next_run(
    many_photos: Path, tmp_path: Path, service: FakeService, script: Script
) -> None:
    out = tmp_path / "out"
    command = ("-m", "cli", "upscale", str(many_photos), str(out), "--server", service.url)
    service.hold = {"b.png"}
    handle = script.handle
    with running(*command, "--parallel", "1") as process:
        service.wait_for_uploads("b.png")
        # From now on every request is cut off; the client would try again for a minute.
        script.handle = lambda *_: None
        script.answers.clear()
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=100)[1]
    assert process.returncode == 130, output
    assert last_states(out)["b.png"] == "begun"
    script.handle = handle
    service.release()
    again = upscale(many_photos, out, "--server", service.url)
    assert again.exit_code == 0, again.output
    assert service.states()["b.png"] == ["succeeded"]
