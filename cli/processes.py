"""A child process of the embedded mode: started, its output read, its end explained."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["Child", "describe_end"]


class Child:
    """One running process and the lines it says.

    Every line goes to `log` and to `on_line`; the last twenty are kept for error messages.

    Args:
        name: what the process is called in messages.
        command: the program and its arguments.
        env: its whole environment.
        log: a file that is written anew.
        stdin: what it reads on its standard input; nothing when None.
        keep: file descriptors that it inherits, such as a lock it shall hold.
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
        keep: Sequence[int] = (),
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.last_lines: deque[str] = deque(maxlen=20)
        self._on_line = on_line
        self._process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=keep,
            # A session of its own: Ctrl-C at the terminal reaches the parent alone, which then
            # stops its children in order.
            start_new_session=True,
        )
        if stdin is not None:
            assert self._process.stdin is not None  # PIPE was asked for
            with self._process.stdin as pipe:
                pipe.write(stdin.encode())
        assert self._process.stdout is not None  # PIPE was asked for
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout, log), name=f"read-{name}", daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ended(self) -> int | None:
        """The exit status when the process has ended (negative: the signal), else None."""
        return self._process.poll()

    def tail(self) -> str:
        """The last lines it said, for a message; waits shortly for lines still in the pipe."""
        if self.ended() is not None:
            self._reader.join(timeout=1)
        return "\n".join(self.last_lines)

    def stop(self, grace_s: float) -> int:
        """Asks the process to end (SIGTERM) and kills it after `grace_s` seconds.

        Returns:
            The exit status.
        """
        self._process.terminate()
        try:
            status = self._process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            # The whole session, so that nothing it started stays behind.
            os.killpg(self._process.pid, signal.SIGKILL)
            status = self._process.wait()
        self._reader.join(timeout=1)
        return status

    def _read(self, pipe: IO[bytes], log: Path) -> None:
        with pipe, log.open("ab") as file:
            for raw in pipe:
                file.write(raw)
                file.flush()
                line = raw.decode("utf-8", errors="replace").rstrip()
                self.last_lines.append(line)
                if self._on_line is not None:
                    self._on_line(line)


def describe_end(status: int) -> str:
    """An exit status in words: "with exit code 3", "by SIGKILL"."""
    if status >= 0:
        return f"with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = ", which is what the system does when memory runs out" if name == "SIGKILL" else ""
    return f"by {name}{hint}"
