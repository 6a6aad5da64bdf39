"""Child processes of the embedded mode."""

from __future__ import annotations

import os
import queue
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.processes import Child, describe_end

Start = Callable[..., Child]


@pytest.fixture
def lines() -> queue.Queue[str]:
    return queue.Queue()


@pytest.fixture
def start(tmp_path: Path, lines: queue.Queue[str]) -> Start:
    def start(code: str, stdin: str | None = None) -> Child:
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
    assert child.ended() is None
    assert child.stop(0.2) == -signal.SIGKILL
    assert child.ended() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("status", "words"),
    [(3, "with exit code 3"), (-15, "by SIGTERM"), (-9, "memory"), (-99, "by signal 99")],
)
def test_an_end_is_told_in_words(status: int, words: str) -> None:
    assert words in describe_end(status)
