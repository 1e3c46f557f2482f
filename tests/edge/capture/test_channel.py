"""Messages between the capture process and the station: all that fit, the oldest lost first, and nobody ever waits."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flawline_edge.capture.channel import Outbox, receive
from flawline_edge.capture.ring import FrameRing

pytestmark = pytest.mark.timeout(30)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_messages_arrive_in_order_with_their_fields(pair: Pair) -> None:
    """One send, one message; texts in any script."""
    outbox = Outbox(pair[1])
    outbox.send("frame", seq=1, slot=3, captured_monotonic=12.25)
    outbox.send("error", error="Kabel ß7 ab", exit_code=1)
    assert receive(pair[0], 1.0) == ({"kind": "frame", "seq": 1, "slot": 3, "captured_monotonic": 12.25}, None)
    assert receive(pair[0], 1.0) == ({"kind": "error", "error": "Kabel ß7 ab", "exit_code": 1}, None)


def test_waiting_ends(pair: Pair) -> None:
    """None after the time given, at once for none."""
    for timeout_s in (0.0, -5.0, 0.05):
        began = time.monotonic()
        assert receive(pair[0], timeout_s) is None
        assert max(0.0, timeout_s) * 0.9 <= time.monotonic() - began < 2.0


def test_a_ring_comes_with_its_memory(pair: Pair) -> None:
    """The file descriptor is another one for the same file."""
    ring = FrameRing.create(1000)
    Outbox(pair[1]).send("ring", ring=ring, slots=ring.slots, slot_bytes=ring.slot_bytes)
    received = receive(pair[0], 1.0)
    assert received is not None and received[1] is not None and received[1] != ring.fd
    assert os.fstat(received[1]).st_ino == os.fstat(ring.fd).st_ino
    assert not os.get_inheritable(received[1])
    os.close(received[1])


def test_who_sends_never_waits_and_loses_the_oldest(pair: Pair) -> None:
    """Nobody listens to ten thousand frames: the first that were sent and the last are there, in order, and the ring."""
    ring, outbox = FrameRing.create(1000), Outbox(pair[1])
    began = time.monotonic()
    for seq in range(10_000):
        if seq == 5_000:
            outbox.send("ring", ring=ring, slots=ring.slots, slot_bytes=ring.slot_bytes)
        outbox.send("frame", seq=seq)
    assert time.monotonic() - began < 10.0
    got, last = [], False
    while (received := receive(pair[0], 0.0)) is not None:
        got.append(received)
        last = last or received[0].get("seq") == 9_999
        if not last:  # what waits goes with the next message
            outbox.send("log", text="goes on")
    seqs = [message["seq"] for message, _ in got if message["kind"] == "frame"]
    assert seqs == sorted(seqs) and seqs[0] == 0 and seqs[-1] == 9_999 and len(seqs) < 2_000
    fds = [fd for message, fd in got if message["kind"] == "ring"]
    assert len(fds) == 1 and fds[0] is not None
    os.close(fds[0])


def test_what_a_process_sent_before_it_ended_arrives(pair: Pair) -> None:
    """Then its end, again and again; also when something sent to it was never read."""
    pair[0].send(b"the task")
    outbox = Outbox(pair[1])
    for seq in range(3):
        outbox.send("frame", seq=seq)
    pair[1].close()
    got = [receive(pair[0], 1.0) for _ in range(3)]
    assert [received and received[0]["seq"] for received in got] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(EOFError):
            receive(pair[0], 1.0)


def test_what_is_no_message_counts_as_the_end(pair: Pair) -> None:
    """A process that writes nonsense there is no use; a file descriptor that came with it is closed."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    socket.send_fds(pair[1], [b"\xff nonsense"], [0])
    with pytest.raises(EOFError):
        receive(pair[0], 1.0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_sending_to_nobody_is_no_error(pair: Pair) -> None:
    """The end of the connection is noticed by who listens for it."""
    pair[0].close()
    outbox = Outbox(pair[1])
    for _ in range(1000):
        outbox.send("frame", seq=1)
    outbox.flush()


def test_a_long_text_is_cut(pair: Pair) -> None:
    """A traceback of a megabyte fits no message."""
    Outbox(pair[1]).send("log", level=40, name="driver", text="ß" * 2**20)
    received = receive(pair[0], 1.0)
    assert received is not None and 1000 < len(received[0]["text"]) < 10_000
