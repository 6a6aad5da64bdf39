from __future__ import annotations

import threading

from worker.watchdog import Watchdog


def test_a_call_that_does_not_come_back_is_noticed_by_its_name() -> None:
    noticed = threading.Event()
    stalled: list[tuple[str, float]] = []

    def on_stall(what: str, seconds: float) -> None:
        stalled.append((what, seconds))
        noticed.set()

    watchdog = Watchdog(0.05, on_stall)
    watchdog.start()
    with watchdog.watch("predict"):
        assert noticed.wait(10)
    [(what, seconds)] = stalled
    assert what == "predict"
    assert seconds > 0.05


def test_calls_that_come_back_are_none_of_its_business() -> None:
    watchdog = Watchdog(3600)
    with watchdog.watch("load"), watchdog.watch("predict"):
        assert watchdog.stalled() is None
    quick = Watchdog(0.0)
    with quick.watch("load"):
        pass
    assert quick.stalled() is None


def test_the_call_that_began_first_is_named() -> None:
    watchdog = Watchdog(-1.0)
    with watchdog.watch("first"), watchdog.watch("second"):
        found = watchdog.stalled()
    assert found is not None
    assert found[0] == "first"


def test_a_long_call_that_says_it_comes_further_is_let_be() -> None:
    watchdog = Watchdog(-1.0)
    with watchdog.watch("decode") as renew:
        before = watchdog.stalled()
        threading.Event().wait(0.01)
        renew()
        after = watchdog.stalled()
    assert before is not None
    assert after is not None
    assert after[1] < 0.01
    assert watchdog.stalled() is None
