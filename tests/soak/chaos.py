"""What happens to the parts meanwhile, drawn by a generator whose seed is printed.

Of the two workers one lives all the time, and after half of the jobs the service is left alone as
well: their memory can be judged. No job meets two dead workers, which would rightly fail it.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.faults.house import House, until
from tests.redis_server import RedisServer
from tests.worker.processes import WorkerProcess

STEP_S = 0.03
BROKEN_UPLOADS = 8
RECOVERY_S = 90.0
# Of renameat2(2).
AT_FDCWD, RENAME_EXCHANGE = -100, 2


class Chaos(threading.Thread):
    """Does one fault after the other until `leaving` is set; then everything works again.

    `counts` are the faults that were done, `fault` is what went wrong with them.
    """

    def __init__(
        self,
        house: House,
        seed: int,
        *,
        pauses_s: tuple[float, float],
        away_s: float,
        note: Callable[[str], None],
        without: Collection[str] = (),
    ) -> None:
        super().__init__(name="chaos")
        self._house, self._pauses_s, self._away_s = house, pauses_s, away_s
        self._rng = random.Random(seed)
        self.leaving = threading.Event()
        self.spares_service = threading.Event()
        self.counts: Counter[str] = Counter()
        self.fault = ""
        self._note = note
        self.steady, self.victim = house.worker(step_s=STEP_S), house.worker(step_s=STEP_S)
        self._hit: set[str] = set()
        """Jobs that a dead worker may have had in hand."""
        faults = {
            self._worker_killed: 3,
            self._worker_stopped: 1,
            self._service_killed: 1,
            self._redis_killed: 2,
            self._all_killed: 1,
            self._store_away: 3,
            self._uploads_cut: 2,
        }
        self._faults = {fault: n for fault, n in faults.items() if _name(fault) not in without}

    def run(self) -> None:
        try:
            while not self.leaving.is_set():
                bag = [fault for fault, times in self._faults.items() for _ in range(times)]
                self._rng.shuffle(bag)
                for fault in bag:
                    if self.leaving.wait(self._rng.uniform(*self._pauses_s)):
                        return
                    self._do(fault)
        # Whatever it is, the soak has to end with it.
        except Exception as error:
            self.fault = f"{type(error).__name__}: {error}"

    def _do(self, fault: Callable[[], None]) -> None:
        if self.spares_service.is_set() and fault in (self._service_killed, self._all_killed):
            return
        self.counts[_name(fault)] += 1
        self._note(_name(fault))
        fault()

    def works(self, worker: WorkerProcess) -> None:
        """Waits until a worker takes jobs: before that a signal ends it as any process."""
        log = worker.log
        until(
            lambda: log.exists() and '"worker ready"' in log.read_text(),
            "a worker is ready",
            seconds=RECOVERY_S,
        )

    # The faults

    def _worker_killed(self) -> None:
        self._wait_for_jobs_in_hand()
        self.victim.signal(signal.SIGKILL)
        self._replace(-signal.SIGKILL)
        self._note_jobs_in_hand()

    def _worker_stopped(self) -> None:
        self.works(self.victim)
        self.victim.signal(signal.SIGTERM)
        self._replace(0)

    def _service_killed(self) -> None:
        self._house.kill_service()
        self._house.start_service()

    def _redis_killed(self) -> None:
        with self._redis_away():
            time.sleep(self._rng.uniform(0.1, self._away_s / 2))

    def _all_killed(self) -> None:
        """All but the steady worker."""
        self._wait_for_jobs_in_hand()
        with self._redis_away():
            self.victim.signal(signal.SIGKILL)
            self._house.kill_service()
        self._house.start_service()
        self._replace(-signal.SIGKILL)
        self._note_jobs_in_hand()

    def _store_away(self) -> None:
        """Files lie where one or both of the folders should be."""
        root = self._house.settings.blob_root
        names = self._rng.choice((["inputs"], ["results"], ["inputs", "results"]))
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(blocked(root / name))
            time.sleep(self._rng.uniform(0.5, self._away_s))

    def _uploads_cut(self) -> None:
        """Clients that go away in the middle of an upload."""
        head = (
            b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        )
        for _ in range(BROKEN_UPLOADS):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._house.port)) as to:
                to.sendall(head + self._rng.randbytes(self._rng.randint(0, 90_000)))

    @contextmanager
    def _redis_away(self) -> Iterator[None]:
        """Killed, and started again after the block: the same one, with its data."""
        before = self._redis_state()
        self._house.redis.kill()
        yield
        self._house.redis.start()
        after = self._redis_state()
        assert after[0] == before[0], f"another Redis answers at the port: {after[0]}"
        assert after[1] >= before[1] / 2, f"Redis came back with {after[1]} keys of {before[1]}"

    def _redis_state(self) -> tuple[str, int]:
        """The folder of its data, and the number of its keys."""
        redis = self._house.redis
        assert isinstance(redis, RedisServer)
        with redis.connect() as connection:
            folder: Any = connection.config_get("dir")
            return folder["dir"], int(str(connection.dbsize()))

    # Between them

    def _replace(self, expected: int) -> None:
        code = self.victim.wait(20)
        assert code == expected, f"the worker's exit code is {code}, not {expected}"
        self.victim = self._house.worker(step_s=STEP_S)

    def _wait_for_jobs_in_hand(self) -> None:
        """Those that met a dead worker have ended."""

        def is_over(job_id: str) -> bool:
            state = self._get(f"/jobs/{job_id}").get("state")
            return state not in ("queued", "processing")

        for job_id in self._hit:
            until(partial(is_over, job_id), f"job {job_id} ends", seconds=RECOVERY_S)
        self._hit.clear()

    def _note_jobs_in_hand(self) -> None:
        jobs = self._get("/jobs?limit=100&state=processing")["jobs"]
        self._hit |= {job["id"] for job in jobs}

    def _get(self, path: str) -> dict[str, Any]:
        """What is answered, once it is: Redis may have just started."""
        answers: list[httpx.Response] = []

        def is_answered() -> bool:
            answers.append(self._house.client.get(path))
            return answers[-1].status_code in (200, 404)

        until(is_answered, f"{path} is answered", seconds=RECOVERY_S)
        body: dict[str, Any] = answers[-1].json()
        return body


def _name(fault: Callable[[], None]) -> str:
    return fault.__name__.strip("_").replace("_", " ")


@contextmanager
def blocked(folder: Path) -> Iterator[None]:
    """A file lies where the folder was, until the block ends: exchanged in one call, since a folder
    that is missing for a moment is made anew by the next put, and its blobs would be unknown."""
    aside = folder.parent.with_name(f"aside-{folder.name}")
    aside.touch(exist_ok=False)
    _exchange(folder, aside)
    try:
        yield
    finally:
        _exchange(folder, aside)
        aside.unlink()


def _exchange(one: Path, other: Path) -> None:
    """Raises OSError where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))
