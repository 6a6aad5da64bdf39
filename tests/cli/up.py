"""A running `stablesr up`: Redis, worker, service and weights, all of them real."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["STABLESR", "up"]

STABLESR = (sys.executable, "-m", "cli")


@contextmanager
def up(data: Path) -> Iterator[str]:
    """The address of a `stablesr up` with its files in `data`; it must end in order."""
    said: list[str] = []
    address: queue.Queue[str | None] = queue.Queue()

    def listen(stream: IO[str]) -> None:
        # To the end: a full pipe would stop the parts that write to it.
        for line in stream:
            said.append(line)
            found = re.search(r"answers at (http://\S+)", line)
            if found is not None:
                address.put(found[1])
        address.put(None)

    command = [*STABLESR, "up", "--port", "0", "--data", str(data)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        listener = threading.Thread(target=listen, args=(process.stderr,))
        listener.start()
        url = address.get(timeout=300)
        assert url is not None, f"stablesr up ended: {''.join(said)}"
        yield url
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
        listener.join()
    assert status == 0, "".join(said)
    assert said[-1].strip() == "Ended."
