"""Who is no worker but connects to a worker's port costs it little memory."""

import contextlib
import os
import pathlib
import socket
import struct
import time

import pytest
from asynchronous_parts import connect, take

zmq = pytest.importorskip("zmq")

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="/proc"),
]
MEGABYTE = 1 << 20


def resident():
    """Bytes of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def pair(monkeypatch):
    transports = connect(monkeypatch, ["here", "here"])
    first, second = transports
    first.send(1, b"hello")
    take(second, 1)
    yield first, second
    for transport in transports:
        transport.close()


def endpoint(transport):
    text = transport._inbox.getsockopt_string(zmq.LAST_ENDPOINT)
    host, port = text.removeprefix("tcp://").split(":")
    return host, int(port)


def check_heard(first, second):
    """The workers still reach each other."""
    large = bytes(3 * MEGABYTE)
    first.send(1, b"still here", [memoryview_of(large)])
    (message,) = take(second, 1)
    assert message.header == b"still here"
    assert message.buffers[0].tobytes() == large


def memoryview_of(data):
    import numpy as np

    return np.frombuffer(data, np.uint8)


GREETING = bytes([0xFF, *[0] * 8, 0x7F, 3, 0]) + b"%s" + bytes(32)


@pytest.mark.parametrize("mechanism", [b"NULL", b"PLAIN", b"CURVE"])
def test_a_frame_that_does_not_end(pair, mechanism):
    """A stranger announces 1 GB, as a command or a part, and sends 64 MB of it."""
    first, second = pair
    before = resident()
    for flags in (0x06, 0x03, 0x02):
        with socket.create_connection(endpoint(second)) as stranger:
            stranger.settimeout(5)
            stranger.sendall(GREETING % mechanism.ljust(20, b"\0"))
            block = bytes(MEGABYTE)
            with pytest.raises(OSError):  # Hung up upon.
                stranger.sendall(bytes([flags]) + struct.pack(">Q", 1 << 30))
                for _ in range(64):
                    stranger.sendall(block)
                    second.poll(0)
    assert resident() - before < 4 * MEGABYTE
    check_heard(first, second)


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_message_that_does_not_end(pair, password):
    """A stranger who speaks ZeroMQ, with parts and more parts to come."""
    first, second = pair
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.setsockopt(zmq.SNDHWM, 4)
        if password:
            stranger.setsockopt(zmq.PLAIN_USERNAME, b"worker")
            stranger.setsockopt(zmq.PLAIN_PASSWORD, password.encode())
        stranger.connect(second._inbox.getsockopt_string(zmq.LAST_ENDPOINT))
        part = bytes(MEGABYTE)
        before = resident()
        # A stranger that is hung up upon early has nobody to send to.
        stranger.setsockopt(zmq.SNDTIMEO, 5_000)
        with contextlib.suppress(zmq.Again):
            for _ in range(64):
                stranger.send(part, zmq.SNDMORE, copy=False)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert second.poll(0.1) == []
        assert resident() - before < 4 * MEGABYTE
    check_heard(first, second)


def test_many_strangers(pair):
    """More than may be connected at a time: the rest wait outside."""
    first, second = pair
    before, address = resident(), endpoint(second)
    with contextlib.ExitStack() as strangers:
        for _ in range(200):
            with contextlib.suppress(OSError):
                stranger = socket.create_connection(address, timeout=1)
                strangers.enter_context(stranger)
                stranger.sendall(GREETING % b"PLAIN".ljust(20, b"\0"))
                stranger.sendall(bytes([0x06]) + struct.pack(">Q", 1 << 18))
                stranger.sendall(bytes(100_000))
            second.poll(0)
        assert len(second._connections) <= 2 + 64
        assert resident() - before < 32 * MEGABYTE
        check_heard(first, second)
    check_heard(first, second)


def test_who_says_nothing_is_disconnected(pair):
    _, second = pair
    with socket.create_connection(endpoint(second)) as stranger:
        stranger.settimeout(0.1)
        began, left = time.monotonic(), b"?"
        while left and time.monotonic() - began < 40:
            second.poll(0)
            try:
                left = stranger.recv(4096)
            except TimeoutError:
                continue
        assert left == b""
