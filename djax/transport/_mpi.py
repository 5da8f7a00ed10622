"""Carries the messages of an asynchronous run over MPI."""

import os
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ._end import end_now
from ._interface import Array, Message
from ._packing import aligned, as_bytes

_HEADER, _BUFFER = 1, 2  # Tags of MPI messages.
# Shortest and longest pause between two polls for messages, in seconds.
_SHORT, _LONG = 50e-6, 1e-3


class MPITransport:
    """Carries messages over an MPI communicator of its own, by non-blocking calls.

    MPI copies a large array once, from the sender's memory to the receiver's. The
    arrays of a message may arrive later than the headers of messages that were sent
    after it. If MPI is CUDA-aware, arrays of JAX can stay on their devices. For this
    the environment variable of mpi4jax has to be set, `MPI4JAX_USE_CUDA_MPI=1`.

    Args:
      comm: an MPI communicator of all workers, which is duplicated. All ranks have to
        make their transports together.

    Raises:
      RuntimeError: if MPI does not allow several threads to call it.
    """

    survives = False

    def __init__(self, comm: Any):
        """Duplicates the communicator."""
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
        # The data of a request must stay alive until the request is complete.
        self._sending: list[tuple[Any, Any]] = []
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
        """Returns an object that MPI can read from or write to.

        An array of JAX is passed by its address, which may be in a device's memory.
        """
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
        """Starts to receive the arrays of new headers; returns complete messages."""
        MPI, status = self._mpi, self._mpi.Status()
        while found := self._comm.Improbe(MPI.ANY_SOURCE, _HEADER, status):
            data = bytearray(status.Get_count(MPI.BYTE))
            found.Recv([data, MPI.BYTE])
            self._receive(status.Get_source(), data)
        complete, waiting = [], []
        for requests, message in self._receiving:
            if MPI.Request.Testall(requests):
                complete.append(message)
            else:
                waiting.append((requests, message))
        self._receiving = waiting
        return complete

    def _receive(self, sender: int, data: bytearray) -> None:
        (count,) = struct.unpack_from("<I", data)
        sizes = struct.unpack_from(f"<{count}Q", data, 4)
        direct = struct.unpack_from(f"<{count}?", data, 4 + 8 * count)
        buffers = list(map(self._buffer, sizes, direct))
        requests = [
            self._comm.Irecv([self._memory(buffer), self._mpi.BYTE], sender, _BUFFER)
            for buffer in buffers
        ]
        message = Message(sender, bytes(data[4 + 9 * count :]), buffers)
        self._receiving.append((requests, message))

    def _buffer(self, size: int, direct: bool) -> Array:
        """Returns an array to receive into, which is a recycled one if possible."""
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
        """See :class:`Transport`; MPI can only end all processes together."""
        end_now(reason, 1, self._mpi.COMM_WORLD)
