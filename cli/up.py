"""`stablesr up`: the embedded mode in a terminal, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.text import Text

from cli.stack import Stack
from cli.view import console

__all__ = ["ends_as_interrupt", "run"]

COLOURS = {"redis": "magenta", "worker": "cyan", "service": "green", "stablesr": "bold yellow"}


def run(data: Path, *, host: str, port: int, preset: str | None) -> None:
    """Starts all parts, says where the page is, shows their lines, and ends them on a signal.

    Raises:
        CliError: a part could not be started or ended for good.
    """
    with ends_as_interrupt(), Stack(data, host=host, port=port, preset=preset, say=_say) as stack:
        try:
            with console.status("Starting Redis, a worker and the service ..."):
                stack.start()
                stack.wait_ready()
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


@contextmanager
def ends_as_interrupt() -> Iterator[None]:
    """Within this context SIGTERM and SIGHUP do what Ctrl-C does: they raise KeyboardInterrupt."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(part: str, line: str) -> None:
    # A Text, since a log line may hold brackets that would read as markup.
    text = Text(f"{part:>8} | ", style=COLOURS[part])
    text.append(line, style="default")
    console.print(text, soft_wrap=True)
