"""The lock on the device: in order, small images between the strips of large ones, a job alone
where it must be, and one part of the networks at a time where these take turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from queue import SimpleQueue

import pytest

from worker.attempt import Interruption
from worker.device_lock import DeviceLock, DeviceTaken, Pause

PATIENCE_S = 20.0


def nothing() -> None:
    pass


class Left(Exception):
    """What a image is ended with."""


class Image:
    """On a thread of its own: asks for a turn, and then does what it is told, a word at a time."""

    def __init__(self, lock: DeviceLock, name: str, log: SimpleQueue[str], *, small: bool) -> None:
        self.name = name
        self.polls = threading.Semaphore(0)
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._leaving = threading.Event()
        self._words: SimpleQueue[str] = SimpleQueue()
        self._log = log
        self._thread = threading.Thread(target=self._run, args=(lock, small), daemon=True)
        self._thread.start()

    def _run(self, lock: DeviceLock, small: bool) -> None:
        try:
            with lock.autoencoder(small=small, poll=self._poll) as pause:
                self._log.put(f"{self.name} has the device")
                self._obey(pause)
        except Left as error:
            self.error = error
        finally:
            self.ended.set()

    def _obey(self, pause: Pause) -> None:
        while (word := self._words.get(timeout=PATIENCE_S)) != "end":
            if word == "fail":
                raise Left
            pause()
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

    def waits(self) -> Image:
        """Until it has looked whether to go on waiting, which it does in the line only."""
        assert self.polls.acquire(timeout=PATIENCE_S)
        return self


class Scene:
    def __init__(self) -> None:
        self.lock = DeviceLock()
        self._log: SimpleQueue[str] = SimpleQueue()
        self.images: list[Image] = []

    def small(self, name: str) -> Image:
        return self._new(name, small=True)

    def large(self, name: str) -> Image:
        return self._new(name, small=False)

    def _new(self, name: str, *, small: bool) -> Image:
        image = Image(self.lock, name, self._log, small=small)
        self.images.append(image)
        return image

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
    for image in scene.images:
        image.end()
        assert image.ended.wait(PATIENCE_S), f"{image.name} hangs"
    # It is held no more.
    left = scene.lock.autoencoder(
        small=False, poll=lambda: pytest.fail("the device was not given back")
    )
    with left:
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


def test_small_images_step_in_between_two_strips_of_a_large_one(scene: Scene) -> None:
    large = scene.large("large")
    scene.then("large has the device")
    one, other = scene.small("one").waits(), scene.small("other").waits()
    large.strip()
    scene.then("one has the device")
    one.end()
    scene.then("other has the device")
    other.end()
    scene.then("large goes on")


def test_a_large_image_waits_for_the_end_of_another(scene: Scene) -> None:
    large = scene.large("large")
    scene.then("large has the device")
    scene.large("next").waits()
    large.strip()
    scene.then("large goes on")
    large.end()
    scene.then("next has the device")


def test_no_image_steps_into_a_small_one(scene: Scene) -> None:
    small = scene.small("small")
    scene.then("small has the device")
    scene.small("next").waits()
    small.strip()
    scene.then("small goes on")
    small.end()
    scene.then("next has the device")


def test_a_large_image_makes_a_strip_between_guests_that_keep_coming(scene: Scene) -> None:
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


def test_a_large_image_that_is_ended_in_its_pause_leaves_the_device_to_its_guests(
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
    lock, inside = DeviceLock(), threading.Lock()

    def image(number: int) -> None:
        with lock.autoencoder(small=number % 3 > 0, poll=nothing) as pause:
            for _ in range(20):
                assert inside.acquire(blocking=False)
                time.sleep(0)  # lets another thread run, if one may
                inside.release()
                pause()

    with ThreadPoolExecutor(12) as pool:
        for ended in [pool.submit(image, number) for number in range(12)]:
            ended.result(PATIENCE_S)


def test_several_jobs_begin_at_once() -> None:
    lock, both = DeviceLock(), threading.Barrier(2, timeout=10)

    def job() -> None:
        with lock.job(alone=False, poll=nothing):
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(job), pool.submit(job)]:
            done.result(timeout=10)


def test_a_job_that_must_be_alone_waits_for_the_others_and_keeps_newcomers_out() -> None:
    lock = DeviceLock()
    order: list[str] = []
    first_is_in, first_may_end, alone_is_in = (threading.Event() for _ in range(3))
    newcomer_waits = threading.Event()

    def first() -> None:
        with lock.job(alone=False, poll=nothing):
            first_is_in.set()
            first_may_end.wait(10)
            order.append("first ends")

    def alone() -> None:
        with lock.job(alone=True, poll=nothing):
            alone_is_in.set()
            newcomer_waits.wait(10)
            order.append("alone ends")

    def newcomer() -> None:
        with lock.job(alone=False, poll=newcomer_waits.set):
            order.append("newcomer")

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(first)]
        assert first_is_in.wait(10)
        jobs.append(pool.submit(alone))
        while lock.open:
            threading.Event().wait(0.001)
        jobs.append(pool.submit(newcomer))
        assert newcomer_waits.wait(10)
        assert not alone_is_in.is_set()
        first_may_end.set()
        for job in jobs:
            job.result(timeout=10)
    assert order == ["first ends", "alone ends", "newcomer"]
    assert lock.open


def test_of_two_jobs_that_must_be_alone_the_second_is_refused_until_the_first_has_ended() -> None:
    lock = DeviceLock()
    with lock.job(alone=True, poll=nothing):
        assert not lock.open
        with pytest.raises(DeviceTaken), lock.job(alone=True, poll=nothing):
            pass
        assert not lock.open
    assert lock.open
    with lock.job(alone=True, poll=nothing):
        assert not lock.open


def test_a_job_that_waits_can_be_called_away_and_lets_others_begin() -> None:
    lock = DeviceLock()

    def leave() -> None:
        raise Interruption

    with lock.job(alone=False, poll=nothing):
        with pytest.raises(Interruption), lock.job(alone=True, poll=leave):
            pass
        assert lock.open
    with lock.job(alone=True, poll=nothing):
        assert not lock.open


def test_a_job_alone_encodes_decodes_and_calls_the_network() -> None:
    lock = DeviceLock(offload=True)
    with lock.job(alone=True, poll=nothing):
        with lock.autoencoder(small=False, poll=nothing):
            pass
        with lock.denoiser():
            pass


def test_network_calls_go_on_while_an_image_is_decoded() -> None:
    lock = DeviceLock()
    with lock.autoencoder(small=False, poll=nothing), lock.denoiser():
        pass


def test_with_offload_the_other_part_waits_until_calls_in_flight_have_ended() -> None:
    lock = DeviceLock(offload=True)
    order: list[str] = []
    waiting = threading.Event()

    def decode() -> None:
        with lock.autoencoder(small=False, poll=waiting.set):
            order.append("decode")

    with ThreadPoolExecutor(1) as pool:
        with lock.denoiser():
            decoding = pool.submit(decode)
            assert waiting.wait(PATIENCE_S)
            order.append("denoise")
        decoding.result(PATIENCE_S)
    assert order == ["denoise", "decode"]


def test_with_offload_what_waits_for_the_other_part_is_not_passed_by() -> None:
    """Steps follow each other without a pause; a decode must come between them all the same."""
    lock = DeviceLock(offload=True)
    order: list[str] = []

    def run(name: str, held: Callable[[], AbstractContextManager[object]]) -> None:
        with held():
            order.append(name)

    decode_waits, step_waits = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        with lock.denoiser():
            decode = pool.submit(
                run, "decode", lambda: lock.autoencoder(small=False, poll=decode_waits.set)
            )
            assert decode_waits.wait(PATIENCE_S)
            step = pool.submit(run, "step", lambda: lock.denoiser(step_waits.set))
            # The part is there, but the decode has waited longer.
            assert step_waits.wait(PATIENCE_S)
        decode.result(PATIENCE_S)
        step.result(PATIENCE_S)
    assert order == ["decode", "step"]


def test_what_is_ended_while_it_waits_leaves_the_line() -> None:
    lock = DeviceLock(offload=True)

    def cancel() -> None:
        raise Left

    with lock.denoiser():
        with pytest.raises(Left), lock.autoencoder(small=False, poll=cancel):
            pass
        with lock.denoiser(cancel):
            pass
