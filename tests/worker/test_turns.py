"""Turns on the device: in order, small pictures between the strips of large ones, none left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

import pytest

from worker.turns import Between, Turns

PATIENCE_S = 20.0


class Left(Exception):
    """What a picture is ended with."""


class Picture:
    """On a thread of its own: asks for a turn, and then does what it is told, a word at a time."""

    def __init__(self, turns: Turns, name: str, log: SimpleQueue[str], *, small: bool) -> None:
        self.name = name
        self.polls = threading.Semaphore(0)
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._leaving = threading.Event()
        self._words: SimpleQueue[str] = SimpleQueue()
        self._log = log
        self._thread = threading.Thread(target=self._run, args=(turns, small), daemon=True)
        self._thread.start()

    def _run(self, turns: Turns, small: bool) -> None:
        try:
            with turns.turn(small=small, poll=self._poll) as between:
                self._log.put(f"{self.name} has the device")
                self._obey(between)
        except Left as error:
            self.error = error
        finally:
            self.ended.set()

    def _obey(self, between: Between) -> None:
        while (word := self._words.get(timeout=PATIENCE_S)) != "end":
            if word == "fail":
                raise Left
            between(self._poll)
            self._log.put(f"{self.name} goes on")

    def _poll(self) -> None:
        self.polls.release()
        if self._leaving.is_set():
            raise Left

    def strip(self) -> None:
        """Comes to the end of a strip."""
        self._words.put("strip")

    def end(self) -> None:
        self._words.put("end")

    def fail(self) -> None:
        self._words.put("fail")

    def leave(self) -> None:
        """Gives up at the next look."""
        self._leaving.set()
        assert self.ended.wait(PATIENCE_S)

    def waits(self) -> Picture:
        """Until it has looked whether to go on waiting, which it does in the line only."""
        assert self.polls.acquire(timeout=PATIENCE_S)
        return self


class Scene:
    def __init__(self) -> None:
        self.turns = Turns()
        self._log: SimpleQueue[str] = SimpleQueue()
        self.pictures: list[Picture] = []

    def small(self, name: str) -> Picture:
        return self._new(name, small=True)

    def large(self, name: str) -> Picture:
        return self._new(name, small=False)

    def _new(self, name: str, *, small: bool) -> Picture:
        picture = Picture(self.turns, name, self._log, small=small)
        self.pictures.append(picture)
        return picture

    def then(self, *said: str) -> None:
        """These come next, in this order."""
        for words in said:
            assert self._log.get(timeout=PATIENCE_S) == words

    def nothing_more(self) -> None:
        assert self._log.empty()


@contextmanager
def _scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    for picture in scene.pictures:
        picture.end()
        assert picture.ended.wait(PATIENCE_S), f"{picture.name} hangs"
    # Nobody holds it any more.
    with scene.turns.turn(small=False, poll=lambda: pytest.fail("the device was not given back")):
        pass


@pytest.fixture
def scene() -> Iterator[Scene]:
    with _scene() as made:
        yield made


def test_turns_come_in_the_order_of_asking(scene: Scene) -> None:
    first = scene.large("first")
    scene.then("first has the device")
    second = scene.small("second").waits()
    third = scene.large("third").waits()
    scene.nothing_more()
    first.end()
    scene.then("second has the device")
    second.end()
    scene.then("third has the device")
    third.end()


def test_small_pictures_step_in_between_two_strips_of_a_large_one(scene: Scene) -> None:
    large = scene.large("large")
    scene.then("large has the device")
    one, other = scene.small("one").waits(), scene.small("other").waits()
    large.strip()
    scene.then("one has the device")
    one.end()
    scene.then("other has the device")
    other.end()
    scene.then("large goes on")


def test_a_large_picture_waits_for_the_end_of_another(scene: Scene) -> None:
    large = scene.large("large")
    scene.then("large has the device")
    scene.large("next").waits()
    large.strip()
    scene.then("large goes on")
    large.end()
    scene.then("next has the device")


def test_nobody_steps_into_a_small_picture(scene: Scene) -> None:
    small = scene.small("small")
    scene.then("small has the device")
    scene.small("next").waits()
    small.strip()
    scene.then("small goes on")
    small.end()
    scene.then("next has the device")


def test_a_large_picture_makes_a_strip_between_guests_that_keep_coming(scene: Scene) -> None:
    large = scene.large("large")
    scene.then("large has the device")
    one = scene.small("one").waits()
    large.strip()
    scene.then("one has the device")
    late = scene.small("late").waits()
    one.end()
    scene.then("large goes on")
    large.strip()
    scene.then("late has the device")
    late.end()
    scene.then("large goes on")


@pytest.mark.parametrize("how", ["guest fails", "guest leaves"])
def test_the_device_comes_back_from_a_guest_that_does_not_end_well(how: str, scene: Scene) -> None:
    large = scene.large("large")
    scene.then("large has the device")
    guest, next_guest = scene.small("guest").waits(), scene.small("next guest").waits()
    if how == "guest leaves":
        guest.leave()
        large.strip()
    else:
        large.strip()
        scene.then("guest has the device")
        guest.fail()
    scene.then("next guest has the device")
    next_guest.end()
    scene.then("large goes on")
    assert isinstance(guest.error, Left)


def test_a_large_picture_that_is_ended_in_its_pause_leaves_the_device_to_its_guests(
    scene: Scene,
) -> None:
    large = scene.large("large")
    scene.then("large has the device")
    one, other = scene.small("one").waits(), scene.small("other").waits()
    behind = scene.large("behind").waits()
    large.strip()
    scene.then("one has the device")
    large.leave()
    scene.nothing_more()
    one.end()
    scene.then("other has the device")
    other.end()
    scene.then("behind has the device")
    behind.end()


def test_only_one_has_the_device_whatever_comes_together() -> None:
    turns, inside = Turns(), threading.Lock()

    def picture(number: int) -> None:
        with turns.turn(small=number % 3 > 0, poll=lambda: None) as between:
            for _ in range(20):
                assert inside.acquire(blocking=False)
                time.sleep(0)  # lets another thread run, if one may
                inside.release()
                between(lambda: None)

    with ThreadPoolExecutor(12) as pool:
        for ended in [pool.submit(picture, number) for number in range(12)]:
            ended.result(PATIENCE_S)
