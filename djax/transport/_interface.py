"""The interface of a transport, which carries the messages of an asynchronous run.

The averaging thread of a worker talks to all other workers at once and must never block
on one of them. A transport therefore never waits for a delivery, and lets its thread
sleep while no message arrives. It delivers the messages of each pair of workers in
order. A message consists of a small header and any number of arrays.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

Array = Any
"""An array of NumPy or JAX."""


class Message(NamedTuple):
    """A message that a worker received.

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

    Only one thread may use a transport, except for `wake`, which any thread may call.

    Attributes:
      survives: whether the other workers can still exchange messages when the process
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

    def recycle(self, buffers: list[Array]) -> None:
        """Takes the arrays of a received message back; a later message reuses them."""

    def wake(self) -> None:
        """Makes a `poll` that runs in another thread return soon."""

    def forget(self, peer: int) -> None:
        """Drops messages that a lost worker has not received."""

    def close(self) -> None:
        """Delivers all messages that have been sent, and closes the connections."""

    def abort(self, reason: str) -> None:
        """Writes the reason to stderr, and ends this process, with all its threads."""
