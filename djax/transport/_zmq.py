"""Carries the messages of an asynchronous run over TCP sockets.

A stranger, in this file, is a peer that connects without knowing the password.
"""

import contextlib
import math
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ._end import end_now
from ._interface import Array, Message
from ._packing import aligned, as_bytes

_USER = "worker"
# Largest size of a frame in bytes. A stranger can make a worker keep one frame.
_FRAME = 1 << 18
# Milliseconds after which a connection without the password is closed. A worker that
# takes longer, on a very busy machine, connects again.
_HANDSHAKE = 10_000
# Largest number of strangers that are connected at the same time.
_STRANGERS = 64
# Milliseconds for which `close` waits until sent messages are delivered.
_LINGER = 2_000


class ZMQTransport:
    """Carries messages over TCP, by ZeroMQ, so that a run survives a worker's death.

    MPI is used once, to exchange addresses and passwords. Workers on one machine use
    its loopback interface. Workers on different machines connect to the host name that
    MPI reports, and a worker listens on these addresses only.

    Any program that reaches a port can connect to it. Before ZeroMQ knows who a peer
    is, it keeps one frame of what the peer sends. Frames are therefore limited to
    256 KiB, and larger arrays are sent in several frames. A stranger is disconnected
    after ten seconds. While 64 strangers are connected, further peers are disconnected
    at once. In a measurement, 200 simultaneous strangers that sent 100 kB each cost
    less than 32 MB in all. The password keeps strangers out; nothing is encrypted.

    Limiting frames costs time. Two processes on two cores that sent each other messages
    of 40 MB, in one array or in 19, needed about twice as long as with a single frame
    for each array (1.8 to 2.6 times in six measurements).

    Args:
      comm: an MPI communicator of all workers. All ranks have to make their transports
        together.

    Raises:
      ModuleNotFoundError: if pyzmq is missing.
    """

    survives = True

    def __init__(self, comm: Any):
        """Exchanges addresses, and connects to all other workers."""
        try:
            import zmq
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                'transport="zmq" needs pyzmq: pip install "djax-gossip[asynchronous]".'
            ) from None

        self._zmq, self._context = zmq, zmq.Context()
        addresses = _addresses(comm)
        reached_at = {views[comm.rank] for views in comm.allgather(addresses)}
        password = secrets.token_hex(16)
        self._open_inbox(password, comm.size + _STRANGERS)
        ports = self._connections.ports = self._bind(reached_at)
        # Workers' names are secret, too: a message from any other name is dropped.
        workers = comm.allgather((ports, password, secrets.token_bytes(16)))
        self._ranks = {name: rank for rank, (_, _, name) in enumerate(workers)}
        name, self._outbox = workers[comm.rank][2], {}
        for rank, (ports, password, _) in enumerate(workers):
            if rank != comm.rank:
                address = addresses[rank]
                port = ports.get(address, ports.get("*"))
                self._outbox[rank] = self._connect(name, password, address, port)
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        self._closing = threading.Lock()
        # Arrays are reused, since getting new memory from the system takes time.
        self._free: dict[int, list[Array]] = {}
        self._poller = zmq.Poller()
        for source in (self._inbox, self._woken, self._connections.monitor):
            self._poller.register(source, zmq.POLLIN)

    def _open_inbox(self, password: str, most: int) -> None:
        """Makes the socket for received messages, with limits on strangers."""
        from zmq.auth.thread import ThreadAuthenticator

        zmq = self._zmq
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_plain("*", {_USER: password})
        self._inbox = self._context.socket(zmq.ROUTER)
        self._inbox.setsockopt(zmq.RCVHWM, 0)
        self._inbox.setsockopt(zmq.PLAIN_SERVER, 1)
        self._inbox.setsockopt(zmq.MAXMSGSIZE, _FRAME)
        self._inbox.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE)
        self._connections = _Connections(self._inbox, most)

    def _bind(self, addresses: set[str]) -> dict[str, int]:
        """Listens on the addresses that other workers connect to.

        If an address does not belong to this machine, for example because a router
        translates addresses, the worker listens on all addresses.

        Returns:
          The ports by address, with the key `"*"` for all addresses.
        """
        bind, ports = self._inbox.bind_to_random_port, {}
        try:
            for address in sorted(addresses):
                ports[address] = bind(f"tcp://{address}")
        except self._zmq.ZMQError:
            ports["*"] = bind("tcp://*")
        return ports

    def _connect(self, name: bytes, password: str, host: str, port: int) -> Any:
        zmq = self._zmq
        outbox = self._context.socket(zmq.DEALER)
        outbox.setsockopt(zmq.PLAIN_USERNAME, _USER.encode())
        outbox.setsockopt(zmq.PLAIN_PASSWORD, password.encode())
        outbox.setsockopt(zmq.SNDHWM, 0)
        outbox.setsockopt(zmq.ROUTING_ID, name)
        outbox.connect(f"tcp://{host}:{port}")
        return outbox

    def send(self, peer: int, header: bytes, buffers: Sequence[Array] = ()) -> None:
        """See :class:`Transport`."""
        if outbox := self._outbox.get(peer):
            arrays = [as_bytes(buffer) for buffer in buffers]
            sizes = struct.pack(f"<{len(arrays)}Q", *(array.size for array in arrays))
            frames = [
                array[start : start + _FRAME].data
                for array in arrays
                for start in range(0, array.size, _FRAME)
            ]
            outbox.send_multipart([header, sizes, *frames], copy=False)

    def poll(self, seconds: float) -> list[Message]:
        """See :class:`Transport`."""
        end = time.perf_counter() + seconds
        while True:
            left = max(0.0, end - time.perf_counter())
            # ZeroMQ counts whole milliseconds. Rounded down, a wait of less than one
            # would not sleep at all.
            found = dict(self._poller.poll(math.ceil(left * 1e3)))
            if self._connections.monitor in found:
                self._connections.limit()
            if self._woken in found:
                os.read(self._woken, 4096)
            complete = self._arrived() if self._inbox in found else []
            if complete or self._woken in found or left <= 0:
                return complete

    def _arrived(self) -> list[Message]:
        zmq, complete = self._zmq, []
        while True:
            try:
                name, header, *parts = self._inbox.recv_multipart(
                    zmq.NOBLOCK, copy=False
                )
            except zmq.Again:
                return complete
            if (sender := self._ranks.get(name.bytes)) is not None:
                buffers = self._join(parts[0].buffer, parts[1:])
                complete.append(Message(sender, header.bytes, buffers))

    def _join(self, sizes: Any, frames: Iterable[Any]) -> list[np.ndarray]:
        """Joins frames to arrays, whose sizes are given as packed `uint64` numbers."""
        arrays, waiting = [], iter(frames)
        for (size,) in struct.iter_unpack("<Q", sizes):
            count = -(-size // _FRAME)
            parts = [
                np.frombuffer(next(waiting).buffer, np.uint8) for _ in range(count)
            ]
            if count == 1:
                arrays.append(parts[0])
                continue
            free = self._free.get(size)
            whole = free.pop() if free else aligned(size)
            if parts:
                np.concatenate(parts, out=whole)
            arrays.append(whole)
        return arrays

    def recycle(self, buffers: list[Array]) -> None:
        """See :class:`Transport`; arrays of one frame are ZeroMQ's memory."""
        for buffer in buffers:
            if buffer.size > _FRAME:
                self._free.setdefault(buffer.size, []).append(buffer)

    def wake(self) -> None:
        """See :class:`Transport`."""
        with self._closing:
            if self._wake >= 0:
                # A full pipe means that the other thread has been woken already.
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake, b"!")

    def forget(self, peer: int) -> None:
        """See :class:`Transport`."""
        if outbox := self._outbox.pop(peer, None):
            outbox.close(linger=0)

    def close(self) -> None:
        """See :class:`Transport`."""
        for outbox in self._outbox.values():
            outbox.close(linger=_LINGER)
        self._connections.close()
        self._inbox.close(linger=0)
        self._authenticator.stop()
        self._context.term()
        with self._closing:
            os.close(self._woken)
            os.close(self._wake)
            self._wake = -1

    def abort(self, reason: str) -> None:
        """See :class:`Transport`; the other processes continue."""
        end_now(reason, 1)


def _addresses(comm: Any) -> list[str]:
    """Returns, for each worker, the address by which this worker reaches it."""
    from mpi4py import MPI

    hosts = comm.allgather(MPI.Get_processor_name())
    return [
        "127.0.0.1" if host == hosts[comm.rank] else socket.gethostbyname(host)
        for host in hosts
    ]


class _Connections:
    """Limits how many peers are connected to a socket at the same time.

    Without a limit, strangers could exhaust the memory: ZeroMQ keeps a frame of each
    connection that has not sent the password yet.

    Args:
      inbox: the socket, before it listens.
      most: largest number of connections.

    Attributes:
      monitor: a socket that becomes readable when a peer connects or leaves.
      ports: the ports on which `inbox` listens, by address.
    """

    def __init__(self, inbox: Any, most: int):
        """Starts without connections."""
        import zmq
        from zmq.utils.monitor import parse_monitor_message

        self._inbox, self._most, self._parse = inbox, most, parse_monitor_message
        self._accepted = zmq.EVENT_ACCEPTED
        self.monitor = inbox.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        )
        self.ports: dict[str, int] = {}
        self._open: set[int] = set()  # File descriptors.

    def __len__(self) -> int:
        return len(self._open)

    def limit(self) -> None:
        """Counts the connections, and closes new ones above the limit."""
        while self.monitor.poll(0):
            event = self._parse(self.monitor.recv_multipart())
            if event["event"] != self._accepted:
                self._open.discard(event["value"])
            elif len(self) < self._most:
                self._open.add(event["value"])
            else:
                self._hang_up(event["value"])

    def _hang_up(self, descriptor: int) -> None:
        """Shuts a connection down that ZeroMQ has accepted; ZeroMQ then frees it."""
        # The peer may have left meanwhile, and its descriptor may be another file's.
        with contextlib.suppress(OSError, IndexError):
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.getsockname()[1] in self.ports.values():
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the monitor."""
        self._inbox.disable_monitor()
        self.monitor.close(linger=0)
