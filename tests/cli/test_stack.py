"""The embedded mode with a real Redis and small stand-ins for worker and service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cli import stack as stack_module
from cli.errors import StartFailure
from cli.stack import Stack

WORKER = "import signal; print('worker is up', flush=True); signal.pause()"
SERVICE = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from redis import Redis

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        # Ready when the Redis it was told answers, and with the folder it was told.
        Redis.from_url(os.environ["STABLESR_REDIS_URL"]).ping()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["STABLESR_BLOB_ROOT"].encode())
    def log_message(self, *_): pass

port = int(os.environ["STABLESR_PORT"])
HTTPServer((os.environ["STABLESR_HOST"], port), Handler).serve_forever()
"""


class Heard:
    """What the parts said, to be waited for."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._news = threading.Condition()

    def __call__(self, part: str, line: str) -> None:
        with self._news:
            self.lines.append((part, line))
            self._news.notify_all()

    def count(self, part: str, words: str) -> int:
        return sum(who == part and words in line for who, line in self.lines)

    def wait(self, part: str, words: str, times: int = 1) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.count(part, words) >= times, 30), self.lines


@pytest.fixture
def heard() -> Heard:
    return Heard()


def make(data: Path, heard: Heard, *, worker: str = WORKER, service: str = SERVICE) -> Stack:
    commands = {
        "worker": (sys.executable, "-u", "-c", worker),
        "service": (sys.executable, "-u", "-c", service),
    }
    return Stack(data, port=0, on_line=heard, commands=commands)


@pytest.fixture
def stack(tmp_path: Path, heard: Heard) -> Iterator[Stack]:
    with make(tmp_path / "data", heard) as stack:
        stack.start()
        yield stack


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def until(true: Callable[[], bool]) -> None:
    """Returns as soon as it is so: for processes that are no children of this one."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_every_part_starts_with_the_settings_of_the_data_folder(
    stack: Stack, tmp_path: Path
) -> None:
    answer = httpx.get(f"{stack.url}/readyz", trust_env=False)
    assert answer.text == str(tmp_path / "data" / "blobs")
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def test_after_stop_no_process_is_left(tmp_path: Path, heard: Heard) -> None:
    stack = make(tmp_path, heard)
    stack.start()
    pids = [stack.children[part].pid for part in ("redis", "worker", "service")]
    stack.stop()
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize("part", ["worker", "service", "redis"])
def test_a_killed_part_is_started_again_with_the_reason(
    stack: Stack, heard: Heard, part: str
) -> None:
    heard.wait("worker", "worker is up")
    first = stack.children[part].pid
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    stack.check()
    assert stack.children[part].pid != first
    assert heard.count("stablesr", f"The part {part} ended by SIGKILL") == 1
    # The service answers again, and has its Redis.
    until(lambda: answers(stack.url))
    if part == "worker":
        heard.wait("worker", "worker is up", times=2)
    stack.check()


def test_a_worker_that_always_dies_is_given_up_with_its_last_words(
    tmp_path: Path, heard: Heard
) -> None:
    with make(tmp_path, heard, worker="raise SystemExit('no weights here')") as stack:

        def start_and_look_after_the_worker_until_it_is_given_up() -> None:
            stack.start()
            while True:
                os.waitid(os.P_PID, stack.children["worker"].pid, os.WEXITED | os.WNOWAIT)
                stack.check()

        with pytest.raises(StartFailure, match="no weights here"):
            start_and_look_after_the_worker_until_it_is_given_up()
    assert heard.count("stablesr", "starting it again") == stack_module.RESTARTS


def test_a_service_that_cannot_start_ends_all_with_its_last_words(
    tmp_path: Path, heard: Heard
) -> None:
    stack = make(tmp_path, heard, service="raise SystemExit('the port is taken')")
    with stack, pytest.raises(StartFailure, match="the port is taken"):
        stack.start()


def test_a_data_folder_in_use_is_refused_with_the_holder(
    stack: Stack, tmp_path: Path, heard: Heard
) -> None:
    with make(tmp_path / "data", heard) as second, pytest.raises(StartFailure) as caught:
        second.start()
    assert f"in use by process {os.getpid()}" in str(caught.value)


def test_a_data_folder_can_be_used_again_after_a_stop(tmp_path: Path, heard: Heard) -> None:
    for _ in range(2):
        with make(tmp_path, heard) as stack:
            stack.start()


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[list[int]]:
    """The children of an `up` in a process that was killed: Redis, worker, service."""
    code = (
        "import pathlib, sys, time; from tests.cli.test_stack import Heard, make\n"
        "stack = make(pathlib.Path(sys.argv[1]), Heard())\n"
        "stack.start()\n"
        "print(*(child.pid for child in stack.children.values()), flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        pids = [int(word) for word in up.stdout.readline().split()]
        # So that what it leaves can be looked at.
        os.kill(pids[0], signal.SIGSTOP)
        up.kill()
    yield pids
    for pid in pids:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


def test_after_up_was_killed_the_next_one_works(
    killed: list[int], tmp_path: Path, heard: Heard
) -> None:
    assert len(killed) == 3
    until(lambda: all(gone(pid) for pid in killed[1:]))
    os.kill(killed[0], signal.SIGCONT)
    with make(tmp_path, heard) as stack:
        stack.start()
        assert answers(stack.url)
    until(lambda: gone(killed[0]))


def test_a_redis_that_is_left_and_does_not_end_is_named(
    killed: list[int], tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "STOP_S", 0.3)
    with make(tmp_path, heard) as stack, pytest.raises(StartFailure, match=f"`kill {killed[0]}`"):
        stack.start()
    assert not gone(killed[0])
