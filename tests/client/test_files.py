"""Images on their way to the server and results on theirs to the disk: whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from stablesr_client import DownloadFailed, Job, JobFailed, NotFound, Result, TimedOut, Unreachable
from tests.client.conftest import MakeClient
from tests.client.shells import FakeClock, Shell
from tests.scripted_server import DONE, IMAGE, JOB_ID, Answer, Script, job

GET = f"GET /jobs/{JOB_ID}"
RESULT = f"{GET}/result"
POST = "POST /upscale"
DELETE = f"DELETE /jobs/{JOB_ID}"
BIG = os.urandom(300_000)


@pytest.mark.parametrize("form", ["path as text", "bytes", "file", "file read half"])
def test_an_image_may_be_given_in_any_form(
    script: Script, client: Shell, image: Path, form: str
) -> None:
    script.add(POST, 202, job("queued"))
    if form == "path as text":
        client.submit(str(image))
    elif form == "bytes":
        client.submit(IMAGE, filename="mine.png")
        assert b'filename="mine.png"' in script.calls(POST)[0][1]
    else:
        with image.open("rb") as file:
            if form == "file read half":
                file.read(4)
            client.submit(file)
        assert b'filename="in.png"' in script.calls(POST)[0][1]
    assert IMAGE in script.calls(POST)[0][1]


def test_an_image_from_a_pipe_is_sent_whole_again_after_a_reset(
    script: Script, client: Shell
) -> None:
    script.reset(POST)
    script.add(POST, 202, job("queued"))
    reading, writing = os.pipe()
    os.write(writing, IMAGE)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        client.submit(pipe)
    assert [IMAGE in body for _, body in script.calls(POST)] == [True, True]


def test_a_name_that_is_no_text_is_sent_as_well_as_it_can_be(
    script: Script, client: Shell, tmp_path: Path
) -> None:
    script.add(POST, 202, job("queued"))
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(IMAGE)
    client.submit(path)
    assert b'filename="caf?.png"' in script.calls(POST)[0][1]


def test_a_missing_file_is_the_systems_own_error(client: Shell, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.submit(tmp_path / "none.png")


def done(content: bytes) -> Job:
    digest = hashlib.sha256(content).hexdigest()
    result = Result(width=8, height=8, bytes=len(content), sha256=digest)
    return Job(id=JOB_ID, state="succeeded", preset="tiny", result=result)


def test_a_result_is_written_whole(script: Script, client: Shell, tmp_path: Path) -> None:
    script.add(RESULT, 200, IMAGE)
    target = tmp_path / "out.png"
    client.download(done(IMAGE), str(target))
    assert target.read_bytes() == IMAGE
    assert list(tmp_path.iterdir()) == [target]


def test_a_result_may_have_the_longest_of_names(
    script: Script, client: Shell, tmp_path: Path
) -> None:
    script.add(RESULT, 200, IMAGE)
    target = tmp_path / f"{'ä' * 125}x.png"
    assert len(os.fsencode(target.name)) == 255
    client.download(done(IMAGE), target)
    assert list(tmp_path.iterdir()) == [target]


def test_an_id_is_enough(script: Script, client: Shell, tmp_path: Path) -> None:
    script.add(GET, 200, job("succeeded", result=DONE))
    script.add(RESULT, 200, IMAGE)
    assert client.download(JOB_ID, tmp_path / "out.png").succeeded
    assert (tmp_path / "out.png").read_bytes() == IMAGE


def serve_ranges(script: Script, cuts: list[int | None], *, content: bytes = BIG) -> None:
    """Answers with the rest that is asked for, cut after so many bytes each time."""

    def handle(call: str, headers: dict[str, str], body: bytes) -> Answer | None:
        if call != RESULT:
            return None
        cut = cuts.pop(0)
        if "range" not in headers:
            return Answer(200, content, {"ETag": '"v1"'}, cut)
        assert headers["if-range"] == '"v1"'
        start = int(headers["range"].removeprefix("bytes=").removesuffix("-"))
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Answer(206, content[start:], {"ETag": '"v1"', "Content-Range": span}, cut)

    script.handle = handle


def test_a_cut_download_goes_on_where_it_was_cut(
    script: Script, client: Shell, tmp_path: Path, clock: FakeClock
) -> None:
    serve_ranges(script, [100_000, 50_000, -1, None])
    client.download(done(BIG), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == BIG
    starts = [headers.get("range") for headers, _ in script.calls(RESULT)]
    assert starts == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    assert len(clock.pauses) == 3


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_etag_a_cut_download_begins_anew(
    script: Script, client: Shell, tmp_path: Path, etag: str | None
) -> None:
    headers: dict[str, Any] = {} if etag is None else {"ETag": etag}
    script.add(RESULT, 200, BIG, cut=100_000, **headers)
    script.add(RESULT, 200, BIG, **headers)
    client.download(done(BIG), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == BIG
    assert all("range" not in headers for headers, _ in script.calls(RESULT))


def test_a_server_that_ignores_the_range_sends_all_of_it(
    script: Script, client: Shell, tmp_path: Path
) -> None:
    script.add(RESULT, 200, BIG, cut=100_000, ETag='"1"')
    script.add(RESULT, 200, BIG, ETag='"1"')
    client.download(done(BIG), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == BIG


def test_a_range_that_cannot_be_had_begins_anew(
    script: Script, client: Shell, tmp_path: Path
) -> None:
    script.add(RESULT, 200, BIG, cut=100_000, ETag='"1"')
    script.add(RESULT, 416, b"", ETag='"1"')
    script.add(RESULT, 200, BIG, ETag='"1"')
    client.download(done(BIG), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == BIG


def test_other_bytes_than_announced_are_asked_for_once_more_and_then_refused(
    script: Script, client: Shell, tmp_path: Path
) -> None:
    wrong = bytes(len(BIG))
    target = tmp_path / "out.png"
    script.add(RESULT, 200, wrong)
    script.add(RESULT, 200, BIG)
    client.download(done(BIG), target)
    assert target.read_bytes() == BIG
    script.answers.clear()
    script.add(RESULT, 200, wrong)
    with pytest.raises(DownloadFailed, match="sha256"):
        client.download(done(BIG), target)
    assert len(script.calls(RESULT)) == 4
    assert target.read_bytes() == BIG
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("status", "cut", "error"),
    [
        pytest.param(410, None, NotFound, id="expired"),
        pytest.param(200, 10, Unreachable, id="always cut"),
    ],
)
def test_a_download_that_fails_leaves_no_file_and_keeps_the_old_one(
    script: Script,
    client: Shell,
    tmp_path: Path,
    status: int,
    cut: int | None,
    error: type[Exception],
) -> None:
    script.add(RESULT, status, IMAGE, cut=cut)
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    with pytest.raises(error):
        client.download(done(IMAGE), target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_target_that_cannot_be_written_is_the_systems_own_error(
    client: Shell, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        client.download(done(IMAGE), tmp_path / "no" / "out.png")


def test_a_job_without_a_result_has_nothing_to_fetch(
    script: Script, client: Shell, tmp_path: Path
) -> None:
    script.add(GET, 200, job("processing"))
    with pytest.raises(JobFailed, match="is processing"):
        client.download(JOB_ID, tmp_path / "out.png")


def test_one_call_submits_waits_and_fetches(script: Script, client: Shell, image: Path) -> None:
    script.add(POST, 202, job("queued"))
    script.add(GET, 200, job("succeeded", result=DONE))
    script.add(RESULT, 200, IMAGE)
    states: list[str] = []
    target = image.parent / "out.WEBP"
    last = client.upscale(image, target, lambda now: states.append(now.state), scale=2)
    assert last.succeeded
    assert target.read_bytes() == IMAGE
    assert states == ["queued", "succeeded"]
    assert b'name="output_format"\r\n\r\nwebp\r\n' in script.calls(POST)[0][1]


def test_a_format_that_is_given_counts_and_the_name_is_free(
    script: Script, client: Shell, image: Path
) -> None:
    script.add(POST, 202, job("succeeded", result=DONE))
    script.add(RESULT, 200, IMAGE)
    client.upscale(image, image.parent / "out", output_format="webp")
    assert (image.parent / "out").read_bytes() == IMAGE
    assert b'name="output_format"\r\n\r\nwebp\r\n' in script.calls(POST)[0][1]


def test_a_name_that_says_no_format_is_refused_before_anything_is_sent(
    script: Script, client: Shell, image: Path
) -> None:
    with pytest.raises(ValueError, match=r"out.gif: the name must end in one of .png"):
        client.upscale(image, image.parent / "out.gif")
    assert script.seen == []


class Unplugged(BaseException):
    """As an interruption: no Exception."""


@pytest.mark.parametrize("why", ["timeout", "interrupted", "callback", "cancel lost"])
def test_a_job_without_a_waiting_caller_is_canceled(
    script: Script, make_client: MakeClient, image: Path, clock: FakeClock, why: str
) -> None:
    script.add(POST, 202, job("queued"))
    script.add(GET, 200, job("processing"), Retry_After="2")
    script.reset(DELETE) if why == "cancel lost" else script.add(DELETE, 202, job("processing"))
    options: dict[str, Any] = {}
    error: type[BaseException]
    if why == "interrupted":

        def stop() -> None:
            raise Unplugged

        clock.on_sleep = stop
        error = Unplugged
    elif why == "callback":
        options["on_progress"] = lambda now: 1 / 0
        error = ZeroDivisionError
    else:
        options["timeout"] = 5
        error = TimedOut
    with pytest.raises(error):
        make_client(script.url).upscale(image, image.parent / "out.png", **options)
    assert len(script.calls(DELETE)) == 1
    assert list(image.parent.iterdir()) == [image]


def test_a_job_that_failed_is_not_canceled(script: Script, client: Shell, image: Path) -> None:
    script.add(POST, 202, job("queued"))
    script.add(GET, 200, job("failed"))
    with pytest.raises(JobFailed):
        client.upscale(image, image.parent / "out.png")
    assert not script.calls(DELETE)
