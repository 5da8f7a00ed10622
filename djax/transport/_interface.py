"""What an asynchronous run needs from a transport, whatever carries the bytes.

The averaging thread of a worker talks to all other workers at once and must never block
on one of them. A transport therefore delivers the messages of each pair of workers in
order, never blocks, and lets its thread sleep while nothing happens. A message is a
small header and any number of arrays.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

Array = Any
"""An array of NumPy or JAX."""


class Message(NamedTuple):
    """What a worker received.

    Attributes:
      sender: rank of the worker that sent the message.
      header: bytes that say what kind of message it is.
      buffers: `uint8[bytes]` arrays. They are arrays of JAX if they were received in
        the memory of a device, and of NumPy otherwise.
    """

    sender: int
    header: bytes
    buffers: list[Array]


class Transport(Protocol):
    """Carries messages between any two workers.

    Only one thread may use a transport; `wake` alone may be called by another one.

    Attributes:
      survives: whether messages still pass between the other workers when the process
        of one worker has died.
    """

    survives: bool

    def send(self, peer: int, header: bytes, buffers: Sequence[Array] = ()) -> None:
        """Sends a message without waiting for its delivery.

        Args:
          peer: rank of the receiver.
          header: bytes that say what kind of message it is.
          buffers: arrays of any shape and dtype, already computed. They must not change
            afterwards.
        """

    def poll(self, seconds: float) -> list[Message]:
        """Returns the messages that have arrived.

        Args:
          seconds: how long to wait if no message has arrived.
        """
        ...

    def recycle(self, buffers: list[Array]) -> None:
        """Takes the arrays of a received message back; a later message reuses them."""

    def wake(self) -> None:
        """Makes a `poll` that runs in another thread return soon."""

    def forget(self, peer: int) -> None:
        """Drops messages that a lost worker has not received."""

    def close(self) -> None:
        """Delivers what has been sent, and frees the connections."""

    def abort(self, reason: str) -> None:
        """Writes the reason to stderr, and ends this process, with all its threads."""
