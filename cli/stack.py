"""The embedded mode: Redis, one worker and the service on this machine, as child processes.

    stablesr up
    ├── redis-server           loopback, free port, append-only file in the data folder
    ├── stablesr worker
    └── stablesr serve

A part that dies is started again, a bounded number of times; all end with their parent.
All state lies in one data folder, locked while it is in use, so that jobs and results
survive a restart and two stacks never share a Redis file.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any, Self

import httpx
import typer
from rich.text import Text

from cli import processes
from cli.errors import StartFailure, require_torch
from cli.options import Preset, option
from cli.processes import Child, describe_end, ends_as_interrupt
from cli.view import console
from jobs.settings import state_folder

COLOURS = {"redis": "magenta", "worker": "cyan", "service": "green", "stablesr": "bold yellow"}
READY_S = 300.0
"""How long the parts may take to come up: the first import of torch on a slow disk."""
STOP_S = 30.0
"""How long a part may take to end before it is killed; a worker gives its job back at once."""
RESTARTS = 5
"""How often a part is started again within `RESTART_WINDOW_S` before all is given up."""
RESTART_WINDOW_S = 600.0

COMMANDS: Mapping[str, Sequence[str]] = {
    "worker": (sys.executable, "-m", "cli", "worker"),
    "service": (sys.executable, "-m", "cli", "serve"),
}
"""What is started beside Redis. As modules, so that it is this package, whatever PATH says."""


class Stack:
    """The running parts; their state lies in the folder `data`, readable by its owner only.

    Port 0 takes a free one; `on_line` is called with each line and event, as (part, line).
    """

    def __init__(
        self,
        data: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        preset: str | None = None,
        on_line: Callable[[str, str], None] = lambda part, line: None,
        commands: Mapping[str, Sequence[str]] = COMMANDS,
    ) -> None:
        self.data = data.expanduser().resolve()
        self._host, self._port = host, port or processes.free_port(host)
        self._preset, self._on_line, self._commands = preset, on_line, commands
        self.children: dict[str, Child] = {}
        self._options: dict[str, dict[str, Any]] = {}
        self._restarts: dict[str, list[float]] = {}
        self._is_ready = False
        self._lock: IO[str] | None = None
        self._env: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Where the service answers."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts every part, and returns when `/readyz` answers 200.

        Raises:
            MissingExtra: something is not installed.
            StartFailure: the data folder is in use, a part ended, or time is over.
        """
        from jobs.logs import CONSOLE

        require_torch()
        redis_server = processes.find_redis_server()
        for folder in (self.data, self.data / "redis", self.data / "blobs", self.data / "logs"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = self._take_lock()
        for log in (self.data / "logs").glob("*.log"):
            log.unlink()
        # Never in a file or an argument.
        port, password = processes.free_port(), secrets.token_urlsafe(24)
        preset = {} if self._preset is None else {"STABLESR_PRESET": self._preset}
        # Lines for a person, though the parts write to a pipe (CONSOLE).
        self._env = {
            **{CONSOLE: "1", **os.environ, **preset, "PYTHONUNBUFFERED": "1"},
            "STABLESR_REDIS_URL": f"redis://:{password}@127.0.0.1:{port}/0",
            "STABLESR_BLOB_ROOT": str(self.data / "blobs"),
            "STABLESR_HOST": self._host,
            "STABLESR_PORT": str(self._port),
        }
        # Everything lies in the data folder, whatever the surroundings say.
        self._env.pop("STABLESR_BLOB_URL", None)
        self._options["redis"] = {
            "command": [str(redis_server), "-"],
            "stdin": processes.redis_config(self.data / "redis", port, password),
            # Redis holds the lock too: should this process be killed, the folder stays taken
            # for as long as its Redis lives.
            "pass_fds": [self._lock.fileno()],
        }
        self._options |= {name: {"command": command} for name, command in self._commands.items()}
        for name in self._options:
            self._start(name)
        with console.status("Starting Redis, a worker and the service ..."):
            self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        answer, pause = "no answer yet", 0.1
        with httpx.Client(base_url=self.url, timeout=5, trust_env=False) as client:
            while time.monotonic() < deadline:
                self.check()
                try:
                    response = client.get("/readyz")
                except httpx.TransportError as error:
                    answer = str(error)
                else:
                    if response.status_code == httpx.codes.OK:
                        self._is_ready = True
                        return
                    answer = f"{response.status_code} {response.text.strip()[:300]}"
                # Ever more slowly: each question is a line in the service's log.
                time.sleep(pause)
                pause = min(1.5 * pause, 1.0)
        raise StartFailure(
            f"The service was not ready after {READY_S:.0f} seconds. {self.url}/readyz "
            f"says: {answer}. The logs are in {self.data / 'logs'}."
        )

    def check(self) -> None:
        """Starts a dead part again; StartFailure when it dies too often.

        Redis or a service that dies before all was ready has a reason that stays.
        """
        for name, child in [*self.children.items()]:
            if (status := child.poll()) is None:
                continue
            end = f"The part {name} ended {describe_end(status)}"
            last = f"It said last:\n{child.tail()}"
            if name != "worker" and not self._is_ready:
                raise StartFailure(f"{end}. {last}")
            now = time.monotonic()
            recent = [at for at in self._restarts.get(name, ()) if now - at < RESTART_WINDOW_S]
            if len(recent) >= RESTARTS:
                raise StartFailure(
                    f"{end}, after {RESTARTS} new starts within {RESTART_WINDOW_S / 60:.0f} "
                    f"minutes; it is given up. {last}"
                )
            self._restarts[name] = [*recent, now]
            again = f"starting it again ({len(recent) + 1} of {RESTARTS})"
            self._on_line("stablesr", f"{end}; {again}.")
            self._start(name)

    def stop(self) -> None:
        """Ends every part in order: first who takes work, then who does it, then Redis.

        A part that does not end in half a minute is killed; so is every one on a second Ctrl-C.
        """
        grace_s = STOP_S
        while self.children:
            name, child = next(reversed(self.children.items()))
            try:
                is_alive = child.poll() is None
                status = child.stop(grace_s)
            except KeyboardInterrupt:
                grace_s = 0
                continue
            del self.children[name]
            # The service ends by the very signal it was sent, after it has closed everything.
            if is_alive and status not in (0, -signal.SIGTERM):
                self._on_line("stablesr", f"The part {name} ended {describe_end(status)}.")
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _start(self, name: str) -> None:
        log, on_line = self.data / "logs" / f"{name}.log", partial(self._on_line, name)
        options = {"log": log, "env": self._env, "on_line": on_line, **self._options[name]}
        self.children[name] = Child(name, **options)
        if name == "redis" and self._lock is not None:
            self._sign(self._lock, self.children[name].pid)

    def _take_lock(self) -> IO[str]:
        import fcntl  # Windows has none, and `up` does not run there

        lock = (self.data / "lock").open("a+")
        deadline = time.monotonic() + STOP_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                pids = lock.read().split()
                holders = [pid for pid in pids if Path(f"/proc/{pid}").exists()] or ["unknown"]
                # A Redis whose parent was killed ends by itself, as soon as it has written all.
                if holders[0] in pids[1:] and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                lock.close()
                raise StartFailure(
                    f"The data folder {self.data} is in use by process {holders[0]}: end it first "
                    f"(`kill {holders[0]}`), or give another folder with --data."
                ) from None
            self._sign(lock)
            return lock

    def _sign(self, lock: IO[str], *pids: int) -> None:
        """Writes down who holds the lock: this process first."""
        lock.truncate(0)
        lock.write(" ".join(map(str, (os.getpid(), *pids))))
        lock.flush()


def up(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 8000,
    data: Annotated[
        Path | None, option("The folder of all state; ~/.local/state/stablesr when not given.")
    ] = None,
    preset: Preset = None,
) -> None:
    """Start Redis, a worker and the service on this machine, until Ctrl-C."""

    def print_line(part: str, line: str) -> None:
        # A Text, since a log line may hold brackets that would read as markup.
        prefix = Text(f"{part:>8} | ", style=COLOURS[part])
        console.print(prefix.append(line, style="default"), soft_wrap=True)

    processes.require_posix("up")
    stack = Stack(data or state_folder(), host=host, port=port, preset=preset, on_line=print_line)
    with ends_as_interrupt(), stack:
        try:
            stack.start()
            console.print(
                f"[bold]Ready.[/bold] The service answers at {stack.url} "
                f"(its interface: {stack.url}/docs). Everything is kept in {stack.data}. "
                "Ctrl-C ends it."
            )
            while True:
                stack.check()
                time.sleep(0.5)
        except KeyboardInterrupt:
            console.print("Ending: a running job goes back to the queue ...")
    console.print("Ended.")
