"""What tests of the parts of :func:`djax.asynchronous.run` share."""

import collections
import sys
import threading
import time
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from djax import topologies
from djax.asynchronous.runtime._settings import Settings
from djax.transport import ZMQTransport

RING = topologies.ring(4)


class Hands:
    """A clock that tests move by hand; it takes the place of the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


def clock_of(module: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> Hands:
    """Gives a module a clock that is moved by hand, and returns the clock."""
    hands = Hands()
    monkeypatch.setattr(module, "time", hands)
    return hands


def make_settings(
    topology: topologies.Topology = RING, rate: Any = 1.0, **options: Any
) -> Settings:
    """The settings of a run of 100 gradients, but for those that are given."""
    defaults: dict[str, Any] = {
        "gradients": 100,
        "seconds": None,
        "pairing": "edge_clocks",
        "random_times": True,
        "max_backlog": None,
        "snapshots": 20,
        "keep_snapshots": False,
        "transport": "mpi",
        "timeout": 60.0,
        "seed": 0,
    }
    return Settings(topology, rate, **(defaults | options))


def values(shape: tuple[int, ...], dtype: DTypeLike, seed: Any = 0) -> jax.Array:
    """Normally distributed numbers of standard deviation 100."""
    x = np.random.default_rng(seed).standard_normal(shape) * 100
    return jnp.asarray(x).astype(dtype)


class Network:
    """Channels between any two workers, in this process's memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.channels: dict[tuple[int, int], collections.deque] = {
            (a, b): collections.deque()
            for a in range(size)
            for b in range(size)
            if a != b
        }
        self.forgotten: list[tuple[int, int]] = []

    def line(self, rank: int) -> Any:
        """A worker's transport, as far as this file's workers need it."""

        def send(peer, header, buffers=()):
            self.channels[rank, peer].append((header, [np.array(b) for b in buffers]))

        def forget(peer):
            self.forgotten.append((rank, peer))

        return types.SimpleNamespace(send=send, forget=forget, survives=True)


class Comm:
    """MPI, as far as it is needed, between threads of this process."""

    def __init__(
        self, rank: int, barrier: threading.Barrier, shared: list[Any]
    ) -> None:
        self.rank, self.size = rank, barrier.parties
        self._barrier, self._shared = barrier, shared

    def allgather(self, value: Any) -> list[Any]:
        self._shared[self.rank] = value
        self._barrier.wait(10)
        values = list(self._shared)
        self._barrier.wait(10)
        return values


def connect(
    monkeypatch: pytest.MonkeyPatch, hosts: Sequence[str]
) -> list[ZMQTransport]:
    """Transports of workers on these machines, none of which starts MPI."""
    pytest.importorskip("zmq")
    names: dict[int, str] = {}
    mpi = types.SimpleNamespace(Get_processor_name=lambda: names[threading.get_ident()])
    monkeypatch.setitem(sys.modules, "mpi4py", types.SimpleNamespace(MPI=mpi))
    barrier = threading.Barrier(len(hosts))
    shared: list[Any] = [None] * len(hosts)
    transports: dict[int, ZMQTransport] = {}

    def make(rank: int) -> None:
        names[threading.get_ident()] = hosts[rank]
        transports[rank] = ZMQTransport(Comm(rank, barrier, shared))

    threads = [threading.Thread(target=make, args=(r,)) for r in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [transports[rank] for rank in range(len(hosts))]


def take(transport: ZMQTransport, count: int) -> list[Any]:
    """Waits up to 20 seconds for so many messages, and asserts that no more came."""
    messages, end = [], time.monotonic() + 20
    while len(messages) < count and time.monotonic() < end:
        messages += transport.poll(1.0)
    assert len(messages) == count
    return messages
