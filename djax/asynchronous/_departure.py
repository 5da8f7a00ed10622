"""How a process ends that belongs to an MPI job in which others have died."""

import atexit
import os
import sys
import time
import traceback

from ._members import Members, Say, encode
from ._transport import Transport


def leave_alone(rank: int) -> None:
    """Lets this process end without MPI's last words, which wait for everybody.

    Args:
      rank: this worker, for an exception's message.
    """
    sys.excepthook = hook = _Excepthook(rank)
    atexit.register(hook.exit)


def leave_together(transport: Transport, members: Members, patience: float) -> None:
    """Likewise, but at the same time as the other survivors.

    When a process has been killed, a launcher ends all others as soon as the next one
    ends: nobody's last words may come after somebody else's.

    Args:
      transport: still open.
      members: who is left.
      patience: seconds for which to wait for the others.
    """
    leave_alone(members.rank)
    atexit.register(_wait, transport, members, patience)


def _wait(transport: Transport, members: Members, patience: float) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    members.say(None, Say.EXIT)
    waiting, end = set(members.others) - members.left, time.monotonic() + patience
    while waiting and time.monotonic() < end:
        for message in transport.poll(1.0):
            if message.header == encode(Say.EXIT):
                waiting.discard(message.sender)
    transport.close()


class _Excepthook:
    """Tells of an uncaught exception, which ends this process alone."""

    def __init__(self, rank: int):
        self._rank, self._code = rank, 0

    def __call__(self, *exception):
        text = "".join(traceback.format_exception(*exception))
        sys.stderr.write(f"rank {self._rank} failed:\n{text}")
        self._code = 1

    def exit(self) -> None:
        """Ends the process, after all that was registered later."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self._code)
