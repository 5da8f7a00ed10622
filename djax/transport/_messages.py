"""How the workers of an asynchronous run reach each other: MPI, or sockets.

Both deliver the messages of a pair in order, never block, and let their thread sleep
when there is nothing to do. A message is a small header and arrays of any size; those
may come later than what was sent after them.
"""

import contextlib
import math
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = Any
"""Of NumPy or JAX."""


class Message(NamedTuple):
    """What a worker received.

    Attributes:
      sender: its rank.
      header: what kind of message it is.
      buffers: `uint8` arrays, JAX's if they came directly to the device.
    """

    sender: int
    header: bytes
    buffers: list[Array]


class Transport(Protocol):
    """Carries messages between any two workers; all but `wake` for one thread only.

    Attributes:
      survives: whether messages still pass when a worker's process has died.
    """

    survives: bool

    def send(self, peer: int, header: bytes, buffers: Sequence[Array] = ()) -> None:
        """Sends a message; the arrays, computed, must not change any more."""

    def poll(self, seconds: float) -> list[Message]:
        """Returns what has arrived, after at most so long if that is nothing."""
        ...

    def recycle(self, buffers: list[Array]) -> None:
        """Gives the arrays of a message back, to be written by a later one."""

    def wake(self) -> None:
        """Ends another thread's `poll` soon."""

    def forget(self, peer: int) -> None:
        """Drops what a worker that is lost has not taken."""

    def close(self) -> None:
        """Sends what is still to be sent, and ends."""

    def abort(self, reason: str) -> None:
        """Says why, and ends this process, whatever its other threads do."""


_HEADER, _BUFFER = 1, 2
# Seconds between two looks for messages: the first, and the longest.
_SHORT, _LONG = 50e-6, 1e-3


class MPITransport:
    """Messages over an MPI communicator of its own, by non-blocking calls.

    A large array is copied once, from the sender's memory to the receiver's. Arrays of
    JAX stay on their devices if the MPI is CUDA-aware and the user says so, as for
    mpi4jax: `MPI4JAX_USE_CUDA_MPI=1`.
    """

    survives = False

    def __init__(self, comm: Any):
        """Takes part in duplicating a communicator; all its ranks have to.

        Raises:
          RuntimeError: if MPI does not let several threads call it.
        """
        from mpi4py import MPI

        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise RuntimeError(
                "asynchronous.run needs an MPI in which two threads may communicate, "
                "MPI_THREAD_MULTIPLE; use MPICH, or an Open MPI configured for it, and "
                "leave mpi4py.rc.thread_level alone."
            )
        self._mpi, self._comm = MPI, comm.Dup()
        wanted = os.environ.get("MPI4JAX_USE_CUDA_MPI", "").lower()
        self._direct = wanted in ("1", "true", "on")
        self._sending: list[tuple[Any, Any]] = []  # Requests, and what they read.
        self._receiving: list[tuple[Any, Message]] = []
        self._free: dict[tuple[int, bool], list[Array]] = {}
        self._woken = threading.Event()

    def send(self, peer: int, header: bytes, buffers: Sequence[Array] = ()) -> None:
        """See :class:`Transport`."""
        count = len(buffers)
        sizes = [buffer.nbytes for buffer in buffers]
        direct = [self._direct and isinstance(buffer, jax.Array) for buffer in buffers]
        head = struct.pack(f"<I{count}Q{count}?", count, *sizes, *direct) + header
        self._isend(head, peer, _HEADER)
        for buffer, stays in zip(buffers, direct, strict=True):
            self._isend(buffer if stays else as_bytes(buffer), peer, _BUFFER)

    def _isend(self, data: Any, peer: int, tag: int) -> None:
        request = self._comm.Isend([self._memory(data), self._mpi.BYTE], peer, tag)
        self._sending.append((request, data))

    def _memory(self, data: Any) -> Any:
        """What MPI takes: of an array of JAX its address, on whatever device."""
        if not isinstance(data, jax.Array):
            return data
        return self._mpi.buffer.fromaddress(data.unsafe_buffer_pointer(), data.nbytes)

    def poll(self, seconds: float) -> list[Message]:
        """See :class:`Transport`."""
        end, pause = time.perf_counter() + seconds, _SHORT
        while True:
            self._sending = [s for s in self._sending if not s[0].Test()]
            if arrived := self._arrived():
                return arrived
            left = end - time.perf_counter()
            if left <= 0 or self._woken.wait(min(pause, left)):
                self._woken.clear()
                return self._arrived()
            moving = self._receiving or self._sending
            pause = min(pause * 1.5, _LONG / 5 if moving else _LONG)

    def _arrived(self) -> list[Message]:
        MPI = self._mpi
        status, complete = MPI.Status(), []
        while found := self._comm.Improbe(MPI.ANY_SOURCE, _HEADER, status):
            data = bytearray(status.Get_count(MPI.BYTE))
            found.Recv([data, MPI.BYTE])
            (count,) = struct.unpack_from("<I", data)
            sizes = struct.unpack_from(f"<{count}Q", data, 4)
            direct = struct.unpack_from(f"<{count}?", data, 4 + 8 * count)
            message = Message(
                status.Get_source(),
                bytes(data[4 + 9 * count :]),
                list(map(self._buffer, sizes, direct)),
            )
            requests = [
                self._comm.Irecv(
                    [self._memory(buffer), MPI.BYTE], message.sender, _BUFFER
                )
                for buffer in message.buffers
            ]
            self._receiving.append((requests, message))
        waiting = []
        for requests, message in self._receiving:
            if MPI.Request.Testall(requests):
                complete.append(message)
            else:
                waiting.append((requests, message))
        self._receiving = waiting
        return complete

    def _buffer(self, size: int, direct: bool) -> Array:
        if self._free.get((size, direct)):
            return self._free[size, direct].pop()
        if direct:
            return jax.block_until_ready(jax.numpy.empty(size, np.uint8))
        return aligned(size)

    def recycle(self, buffers: list[Array]) -> None:
        """See :class:`Transport`."""
        for buffer in buffers:
            key = buffer.size, isinstance(buffer, jax.Array)
            self._free.setdefault(key, []).append(buffer)

    def wake(self) -> None:
        """See :class:`Transport`."""
        self._woken.set()

    def forget(self, peer: int) -> None:
        """See :class:`Transport`."""

    def close(self) -> None:
        """See :class:`Transport`."""
        self._mpi.Request.Waitall([request for request, _ in self._sending])
        self._comm.Free()

    def abort(self, reason: str) -> None:
        """See :class:`Transport`; MPI cannot but end all processes."""
        print(reason, file=sys.stderr, flush=True)
        self._mpi.COMM_WORLD.Abort(1)


_USER = "worker"
# Bytes of a frame at most, which is what a stranger can make a worker keep.
_FRAME = 1 << 18
# Milliseconds after which a stranger who has not said the password is disconnected. A
# worker that takes longer, on a very busy machine, connects again.
_HANDSHAKE = 10_000
# Connections of strangers at a time.
_STRANGERS = 64


class ZMQTransport:
    """Messages over TCP, by ZeroMQ; MPI only tells the addresses and the passwords.

    Workers of one machine talk over its loopback device; others connect to the name
    that MPI knows each other's machine by, and only there does a worker listen.

    Anybody who reaches a port may connect. Before ZeroMQ knows who speaks it keeps what
    has come of one frame, so frames are limited, and large arrays travel in several.
    Who does not know the worker's password within ten seconds is disconnected, and so
    is who comes while 64 such connections are open: 200 strangers at the same time,
    with 100 kB each, were measured to cost less than 32 MB in all. The password keeps
    others out; nothing is encrypted.

    Frames have their price. Messages of 40 MB that two processes on two cores sent to
    each other, in one array or in 19, took about twice as long (1.8 to 2.6 times in six
    measurements) as with a single frame for each array.
    """

    survives = True

    def __init__(self, comm: Any):
        """Takes part in exchanging addresses; all ranks have to.

        Raises:
          ModuleNotFoundError: if pyzmq is missing.
        """
        try:
            import zmq
            from zmq.auth.thread import ThreadAuthenticator
            from zmq.utils.monitor import parse_monitor_message
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                'transport="zmq" needs pyzmq: pip install "djax-gossip[asynchronous]".'
            ) from None
        from mpi4py import MPI

        self._zmq, self._context = zmq, zmq.Context()
        self._parse = parse_monitor_message
        hosts = comm.allgather(MPI.Get_processor_name())
        mine = hosts[comm.rank]
        addresses = [
            "127.0.0.1" if host == mine else socket.gethostbyname(host)
            for host in hosts
        ]
        reached_at = {views[comm.rank] for views in comm.allgather(addresses)}
        password = secrets.token_hex(16)
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_plain("*", {_USER: password})
        self._inbox = self._context.socket(zmq.ROUTER)
        self._inbox.setsockopt(zmq.RCVHWM, 0)
        self._inbox.setsockopt(zmq.PLAIN_SERVER, 1)
        self._inbox.setsockopt(zmq.MAXMSGSIZE, _FRAME)
        self._inbox.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE)
        self._monitor = self._inbox.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        )
        ports = self._bind(reached_at)
        # Names that nobody else can guess: what comes from others is dropped.
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
        # Arrays that are used again: the system maps new memory page by page.
        self._free: dict[int, list[Array]] = {}
        self._poller = zmq.Poller()
        self._poller.register(self._inbox, zmq.POLLIN)
        self._poller.register(self._woken, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def _bind(self, addresses: set[str]) -> dict[str, int]:
        """Listens where others connect to; everywhere if these are another machine's.

        Returns:
          The ports by address, `"*"` for everywhere.
        """
        self._connections: set[int] = set()
        bind, ports = self._inbox.bind_to_random_port, {}
        try:
            for address in sorted(addresses):
                ports[address] = bind(f"tcp://{address}")
        except self._zmq.ZMQError:  # Behind a translation of addresses, for example.
            ports["*"] = bind("tcp://*")
        self._ports = set(ports.values())
        return ports

    def _count(self) -> None:
        """Counts who is connected, and hangs up on whoever is too many."""
        while self._monitor.poll(0):
            event = self._parse(self._monitor.recv_multipart())
            if event["event"] != self._zmq.EVENT_ACCEPTED:
                self._connections.discard(event["value"])
            elif len(self._connections) < len(self._ranks) + _STRANGERS:
                self._connections.add(event["value"])
            else:
                self._hang_up(event["value"])

    def _hang_up(self, descriptor: int) -> None:
        """Ends a connection that ZeroMQ has accepted; it notices, and frees it."""
        with contextlib.suppress(OSError, IndexError):  # It has ended by itself.
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                # By now the number may be of something else.
                if connection.getsockname()[1] in self._ports:
                    connection.shutdown(socket.SHUT_RDWR)

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
            # ZeroMQ counts in whole milliseconds; rounded down it would not sleep.
            found = dict(self._poller.poll(math.ceil(left * 1e3)))
            if self._monitor in found:
                self._count()
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

    def _join(self, sizes: Any, frames: Sequence[Any]) -> list[np.ndarray]:
        """Puts the frames of arrays of these sizes together."""
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
        """See :class:`Transport`; arrays of a single frame are ZeroMQ's memory."""
        for buffer in buffers:
            if buffer.size > _FRAME:
                self._free.setdefault(buffer.size, []).append(buffer)

    def wake(self) -> None:
        """See :class:`Transport`."""
        with self._closing:
            if self._wake >= 0:
                with contextlib.suppress(BlockingIOError):  # It has been woken already.
                    os.write(self._wake, b"!")

    def forget(self, peer: int) -> None:
        """See :class:`Transport`."""
        if outbox := self._outbox.pop(peer, None):
            outbox.close(linger=0)

    def close(self) -> None:
        """See :class:`Transport`."""
        for outbox in self._outbox.values():
            outbox.close(linger=2_000)
        self._inbox.disable_monitor()
        self._monitor.close(linger=0)
        self._inbox.close(linger=0)
        self._authenticator.stop()
        self._context.term()
        with self._closing:
            os.close(self._woken)
            os.close(self._wake)
            self._wake = -1

    def abort(self, reason: str) -> None:
        """See :class:`Transport`; the other processes live on."""
        print(reason, file=sys.stderr, flush=True)
        os._exit(1)


TRANSPORTS = {"mpi": MPITransport, "zmq": ZMQTransport}


def as_bytes(array: Array) -> np.ndarray:
    """An array's bytes in the host's memory: on a CPU where they are."""
    if isinstance(array, jax.Array) and next(iter(array.devices())).platform != "cpu":
        pinned = array.sharding.with_memory_kind("pinned_host")
        array = jax.device_put(array, pinned)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def aligned(size: int) -> np.ndarray:
    """An array of bytes that JAX can read where it is."""
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size]
