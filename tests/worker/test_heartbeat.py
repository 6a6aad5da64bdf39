"""The worker's own line in the register of workers, and its watchdog."""

from __future__ import annotations

import threading
from typing import cast

from jobs.settings import Settings
from jobs.workers import WorkerInfo, Workers
from worker.heartbeat import Registration, Watchdog


class SlowRegister:
    """Lets the first heartbeat be written only after it was allowed."""

    def __init__(self) -> None:
        self.begun, self.allowed = threading.Event(), threading.Event()
        self.states: list[str] = []

    def heartbeat(self, info: WorkerInfo) -> None:
        if not self.begun.is_set():
            self.begun.set()
            self.allowed.wait(10)
        self.states.append(info.state)


def test_a_slow_heartbeat_does_not_write_an_older_state_over_a_newer_one() -> None:
    register = SlowRegister()
    registration = Registration(Settings(), cast(Workers, register), "cpu", lambda: (0, 0))
    heartbeat = threading.Thread(target=registration.write)
    change = threading.Thread(target=registration.change, args=("compiling", (0, 1)))
    heartbeat.start()
    register.begun.wait(10)
    change.start()
    change.join(0.2)  # Time to overtake, if it can.
    register.allowed.set()
    heartbeat.join(10)
    change.join(10)
    assert register.states == ["starting", "compiling"]


def test_a_call_that_does_not_come_back_is_noticed_by_its_name() -> None:
    event = threading.Event()
    stalls: list[tuple[str, float]] = []

    def on_stall(what: str, seconds: float) -> None:
        stalls.append((what, seconds))
        event.set()

    watchdog = Watchdog(0.05, on_stall)
    watchdog.thread.start()
    with watchdog.watch("predict"):
        assert event.wait(10)
    watchdog.thread.stop()
    what, seconds = stalls[0]
    assert what == "predict"
    assert seconds > 0.05


def test_calls_that_come_back_are_none_of_its_business() -> None:
    watchdog = Watchdog(3600)
    with watchdog.watch("load"), watchdog.watch("predict"):
        assert watchdog.stall() is None
    quick = Watchdog(0.0)
    with quick.watch("load"):
        pass
    assert quick.stall() is None


def test_the_call_that_began_first_is_named() -> None:
    watchdog = Watchdog(-1.0)
    with watchdog.watch("first"), watchdog.watch("second"):
        stall = watchdog.stall()
    assert stall is not None
    assert stall[0] == "first"


def test_a_long_call_that_says_it_comes_further_is_let_be() -> None:
    watchdog = Watchdog(-1.0)
    with watchdog.watch("decode") as feed:
        before = watchdog.stall()
        threading.Event().wait(0.01)
        feed()
        after = watchdog.stall()
    assert before is not None
    assert after is not None
    assert after[1] < 0.01
    assert watchdog.stall() is None
