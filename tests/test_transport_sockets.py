"""Messages between workers over ZeroMQ, between threads of one process."""

import threading
import time

import numpy as np
import pytest
from asynchronous_parts import connect, take

from djax.asynchronous.runtime._members import Say, encode

pytestmark = pytest.mark.usefixtures("as_users")


@pytest.fixture
def sockets(monkeypatch):
    opened = []

    def make(*hosts):
        opened.extend(connect(monkeypatch, hosts))
        return opened[-len(hosts) :]

    yield make
    for transport in opened:
        if not transport._inbox.closed:
            transport.close()


@pytest.mark.parametrize("hosts", [["here"] * 3, ["localhost", "127.0.0.1"]])
def test_messages_arrive_in_order(sockets, hosts):
    transports = sockets(*hosts)
    sizes = [0, 1, 1000, 3 * 2**20, 7, 2**20]
    sent = [np.random.default_rng(n).bytes(n) for n in sizes]
    arrays = [np.frombuffer(data, np.uint8) for data in sent]
    for rank, transport in enumerate(transports):
        for peer in range(len(transports)):
            if peer != rank:
                for number, array in enumerate(arrays):
                    transport.send(peer, b"%d %d" % (rank, number), [array, arrays[1]])
                transport.send(peer, b"end")
    for rank, transport in enumerate(transports):
        messages = take(transport, (len(transports) - 1) * (len(sizes) + 1))
        for peer in set(range(len(transports))) - {rank}:
            own = [message for message in messages if message.sender == peer]
            heads = [b"%d %d" % (peer, number) for number in range(len(sizes))]
            assert [message.header for message in own] == [*heads, b"end"]
            assert [m.buffers[0].tobytes() for m in own[:-1]] == sent
            assert all(m.buffers[1].tobytes() == sent[1] for m in own[:-1])
            assert own[-1].buffers == []


def test_waking_ends_one_wait(sockets):
    transport, _ = sockets("here", "here")
    threading.Timer(0.05, transport.wake).start()
    began = time.perf_counter()
    assert transport.poll(30.0) == []
    assert time.perf_counter() - began < 15
    began = time.perf_counter()
    assert transport.poll(0.1) == []  # It is not woken again.
    assert 0.09 < time.perf_counter() - began < 15


def test_who_is_forgotten_gets_nothing_any_more(sockets):
    first, second = sockets("here", "here")
    first.send(1, b"before")
    assert take(second, 1)[0].header == b"before"
    first.forget(1)
    first.forget(1)
    first.send(1, b"after")
    assert second.poll(0.1) == []
    second.send(0, b"a last word")
    assert take(first, 1)[0].header == b"a last word"


def test_what_was_sent_arrives_after_the_sender_has_closed(sockets):
    first, second = sockets("here", "here")
    large = np.arange(2**20, dtype=np.uint32).view(np.uint8)
    for _ in range(16):
        first.send(1, b"large", [large])
    first.close()
    for message in take(second, 16):
        np.testing.assert_array_equal(message.buffers[0], large)


def test_strangers_are_not_heard(sockets):
    import zmq

    first, second = sockets("here", "here")
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(second._inbox.getsockopt_string(zmq.LAST_ENDPOINT))
        stranger.send_multipart([encode(Say.LOST, 0, "so I say")])
        assert second.poll(1.0) == []
        first.send(1, b"hello")
        assert [message.header for message in take(second, 1)] == [b"hello"]
