"""The proxy that breaks on purpose does just what it says: the tests of faults stand on it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.edge.proxy import TcpProxy

pytestmark = pytest.mark.timeout(20)


class Echo:
    """A server that sends back what it gets, and counts who has gone."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.gone = threading.Semaphore(0)
        self.got = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(peer,), daemon=True).start()

    def _echo(self, peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(65536):
                    self.got += data
                    peer.sendall(data)
            except OSError:
                pass
        self.gone.release()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[TcpProxy]:
    with TcpProxy(echo.port) as made:
        yield made


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    with connect(proxy) as made:
        yield made


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 5.0)


def answer(client: socket.socket, said: bytes, timeout_s: float = 5.0) -> bytes:
    client.settimeout(timeout_s)
    client.sendall(said)
    heard = b""
    try:
        while len(heard) < len(said):
            data = client.recv(65536)
            if not data:
                break
            heard += data
    except TimeoutError:
        pass
    return heard


def test_it_forwards_much_and_in_order(client: socket.socket) -> None:
    said = bytes(range(256)) * 20_000
    done: list[bytes] = []
    listener = threading.Thread(target=lambda: done.append(_read(client, len(said))))
    listener.start()
    client.sendall(said)
    listener.join(10.0)
    assert done == [said]


def _read(client: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count and (data := client.recv(65536)):
        parts += data
    return bytes(parts)


def test_an_end_is_passed_on(echo: Echo, client: socket.socket) -> None:
    assert answer(client, b"x") == b"x"
    client.close()
    assert echo.gone.acquire(timeout=5.0)


@pytest.mark.parametrize("direction", ["both", "to_server", "to_client"])
def test_a_black_hole_swallows_and_says_nothing(
    echo: Echo, proxy: TcpProxy, client: socket.socket, direction: str
) -> None:
    """Neither side is told; healed, old connections stay silent and new ones work."""
    assert answer(client, b"before") == b"before"
    proxy.black_hole(direction)  # type: ignore[arg-type]
    assert answer(client, b"lost", 0.3) == b""
    assert echo.got == (b"beforelost" if direction == "to_client" else b"before")
    with connect(proxy) as late:
        assert answer(late, b"also lost", 0.3) == b""
    assert not echo.gone.acquire(timeout=0.2) or direction == "to_client"
    proxy.heal()
    assert answer(client, b"again", 0.3) == b""
    with connect(proxy) as late:
        assert answer(late, b"after") == b"after"


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "reset"])
def test_a_cut_reaches_both_sides(echo: Echo, proxy: TcpProxy, client: socket.socket, reset: bool) -> None:
    assert answer(client, b"x") == b"x"
    proxy.cut(reset=reset)
    client.settimeout(5.0)
    if reset:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    else:
        assert client.recv(1) == b""
    assert echo.gone.acquire(timeout=5.0)
    assert proxy.open_connections == 0
    with connect(proxy) as late:
        assert answer(late, b"y") == b"y"


def test_a_delay_is_there_and_back(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.delay(0.15)
    began = time.monotonic()
    assert answer(client, b"slow") == b"slow"
    assert 0.28 < time.monotonic() - began < 2.0


def test_refusing_is_for_new_connections(proxy: TcpProxy, client: socket.socket) -> None:
    assert answer(client, b"x") == b"x"
    proxy.refuse()
    with pytest.raises(ConnectionResetError), connect(proxy) as late:
        late.recv(1)
    assert answer(client, b"y") == b"y"
    assert proxy.accepted == 2


def test_a_server_that_is_not_there(echo: Echo, proxy: TcpProxy) -> None:
    echo.close()
    with pytest.raises(ConnectionResetError), connect(proxy) as client:
        client.recv(1)
    echo._listener = socket.create_server(("127.0.0.1", 0))  # for the fixture to close
