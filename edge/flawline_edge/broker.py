"""The demo broker: amqtt inside the station's process, so that `mqtt.host: embedded` needs no broker at all.

amqtt speaks MQTT 3.1.1, keeps nothing on disk and serves this machine only. It is for demos and tests: a line
names a real broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

from flawline_inspect.errors import BrokerError

__all__ = ["EmbeddedBroker", "free_port"]

_HOST = "127.0.0.1"
_START_S = 5.0
_SHUTDOWN_S = 1.5
"""What amqtt gets to say goodbye to its clients; after it their tasks are cancelled."""
_STOP_S = 3.0
_FREE_PORT_TRIES = 5
_NOISY_LOGGERS = ("amqtt", "transitions")

_FIRST_READ_BYTES = 65536
_CONNECT = b"\x10"
_MQTT5 = b"\x00\x04MQTT\x05"
_CONNECT_HEADER_BYTES = 12
"""Packet type, up to 4 bytes of length, protocol name and level."""
_UNSUPPORTED_VERSION = b"\x20\x03\x00\x84\x00"
"""CONNACK of MQTT 5: no session, reason 0x84, no properties."""

_Serve = Callable[..., Coroutine[Any, Any, None]]


class EmbeddedBroker:
    """A broker on 127.0.0.1 for as long as the context is entered; anyone on this machine may connect.

    `port` 0 takes a free one; afterwards `port` says which. Entering raises `BrokerError` when amqtt is not
    installed or the port is taken.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._any_port = port == 0
        self._levels: dict[str, int] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> EmbeddedBroker:
        try:
            importlib.import_module("amqtt.broker")
        except ImportError as exc:
            raise BrokerError(
                "host: embedded needs the demo extra: pip install 'flawline[demo]',"
                " or name a real broker under mqtt.host"
            ) from exc
        for name in _NOISY_LOGGERS:
            # amqtt reports every MQTT 5 client that it turns away, and would print it without any handler set
            # up.
            self._levels[name] = logging.getLogger(name).level
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        try:
            self._start()
        except BaseException:
            self._restore_loggers()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(stop.set)
        if self._thread is not None:
            self._thread.join(_STOP_S)
        self._restore_loggers()

    def _start(self) -> None:
        for _ in range(_FREE_PORT_TRIES if self._any_port else 1):
            if self._any_port:
                self.port = free_port()
            self._started.clear()
            error = self._attempt()
            if error is None:
                return
        raise BrokerError(
            f"the embedded broker cannot listen on {_HOST}:{self.port} ({error});"
            " free the port, or take port 0 for any free one"
        ) from error

    def _attempt(self) -> BaseException | None:
        self._error = None
        self._thread = threading.Thread(target=self._serve, name="embedded-broker", daemon=True)
        self._thread.start()
        if not self._started.wait(_START_S):
            return TimeoutError(f"no answer within {_START_S:.0f} s")
        return self._error

    def _serve(self) -> None:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda _loop, _context: None)  # a client that is cut off is no news
        try:
            loop.run_until_complete(self._run(loop))
        except Exception as exc:
            self._error = exc.__cause__ or exc
        finally:
            with contextlib.suppress(Exception):
                loop.run_until_complete(_cancel_all(loop))
                loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            self._started.set()

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        configuration: dict[str, Any] = {
            "listeners": {"default": {"type": "tcp", "bind": f"{_HOST}:{self.port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        broker = importlib.import_module("amqtt.broker").Broker(configuration)
        broker.stream_connected = _guarding(broker.stream_connected)
        stop = asyncio.Event()
        await broker.start()
        self._loop, self._stop = loop, stop
        self._started.set()
        await stop.wait()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(broker.shutdown(), _SHUTDOWN_S)

    def _restore_loggers(self) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)


def _guarding(serve: _Serve) -> _Serve:
    """What amqtt leaves undone for a connection that is not a proper MQTT 3.1.1 client's."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, **names: Any) -> None:
        try:
            first = await reader.read(_FIRST_READ_BYTES)
            if first[:1] == _CONNECT and _MQTT5 in first[:_CONNECT_HEADER_BYTES]:
                # amqtt reads the properties of a will as something else, and waits for the rest for ever.
                writer.write(_UNSUPPORTED_VERSION)
            elif first and not reader.at_eof():
                reader.feed_data(first)  # nothing was awaited since, so this is still its beginning
                await serve(reader, writer, **names)
        finally:
            writer.close()  # amqtt forgets the socket of a client that has not said CONNECT

    return served


async def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_STOP_S - _SHUTDOWN_S)
    for _ in range(3):  # a transport that was closed lets go of its socket a turn later
        await asyncio.sleep(0)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
