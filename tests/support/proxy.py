"""A TCP proxy that can be cut, for what is away for a while."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress


class Proxy:
    """Passes connections to its own port on to another one, unless it is cut.

    Attributes:
        port: its own, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.restore()

    def restore(self) -> None:
        """Let connections through."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def cut(self) -> None:
        """Refuse new connections and end those that there are."""
        assert self._listener
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", self._target))
                for each in (here, there):  # a message is sent at once, as libpq does
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for ways in ((here, there, self.sent(here)), (there, here, _blocks(there))):
                    threading.Thread(target=self._pass_on, args=ways, daemon=True).start()

    def sent(self, client: socket.socket) -> Iterator[bytes]:
        """What a client sends, as it is passed on."""
        return _blocks(client)

    def _pass_on(self, one: socket.socket, other: socket.socket, blocks: Iterator[bytes]) -> None:
        self._open.add(one)
        with suppress(OSError):
            for data in blocks:
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.discard(one)
        one.close()


def _blocks(source: socket.socket) -> Iterator[bytes]:
    while data := source.recv(65536):
        yield data
