"""What each client's script shares: its pictures, and a line of JSON for each case.

It runs in an environment that holds the clients and nothing of this project.
"""

import io
import json
import os
import struct
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NoReturn

URL, TLS_URL, KEY, HOOK = (os.environ.get(name, "") for name in ("URL", "TLS_URL", "KEY", "HOOK"))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int = 24, height: int = 16, pixels: bytes | None = None) -> bytes:
    """A grey ramp; with other `pixels`, a file whose header is right and whose pixels are not."""
    rows = b"".join(bytes([0, *(i % 256 for i in range(3 * width))]) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(rows) if pixels is None else pixels
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


PNG = png()
# No deflate stream: the job fails, not the request.
BROKEN = png(pixels=b"\xff" * 64)


def size(data: bytes) -> tuple[int, int]:
    """Sides of a PNG."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", data[:20]
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def photo() -> io.BytesIO:
    """An open file, as the clients' examples have it."""
    file = io.BytesIO(PNG)
    file.name = "photo.png"
    return file


def soon(true: Callable[[], bool], seconds: float = 60) -> None:
    """Waits until it is so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs the call beside the caller; its result or error is in the list that is returned."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def refused(call: Callable[[], Any], *words: str) -> Exception:
    """The error of a call that must fail, with these words in it."""
    try:
        call()
    except Exception as error:
        text = f"{error} {getattr(error, 'message', '')} {getattr(error, 'args', '')}"
        assert all(word in text for word in words), text
        return error
    raise AssertionError("it was not refused")


def report(package: str, cases: dict[str, Callable[[], Any]]) -> NoReturn:
    """Runs the cases, one line of JSON each; `package` names the client."""
    for name, case in cases.items():
        line = {"client": package, "version": version(package), "case": name, "fault": ""}
        try:
            case()
        except Exception:
            line["fault"] = traceback.format_exc()
        print("case " + json.dumps(line), flush=True)
    sys.exit()
