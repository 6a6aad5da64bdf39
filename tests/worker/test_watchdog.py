from __future__ import annotations

import threading

from worker.watchdog import Watchdog


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
