"""A TCP proxy in front of Redis that can lose the answer to a transaction."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class RedisProxy:
    """`with RedisProxy(server.port) as proxy: Redis.from_url(proxy.url)`.

    After `lose_answer` the next EXEC reaches Redis and is answered, but its client sees the
    connection break instead. `lost` is set when that has happened.
    """

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._armed = threading.Event()
        self.lost = threading.Event()

    def lose_answer(self) -> None:
        self._armed.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Closing alone does not wake the thread that accepts.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._to)
                losing = threading.Event()
                for action in (self._forward, self._answer):
                    threading.Thread(
                        target=action, args=(client, server, losing), daemon=True
                    ).start()

    def _forward(
        self, client: socket.socket, server: socket.socket, losing: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if self._armed.is_set() and b"EXEC\r\n" in data:
                    self._armed.clear()
                    losing.set()
                server.sendall(data)
        _end(client, server)

    def _answer(
        self, client: socket.socket, server: socket.socket, losing: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if losing.is_set():
                    self.lost.set()
                    break
                client.sendall(data)
        _end(client, server)


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
