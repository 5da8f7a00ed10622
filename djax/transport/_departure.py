"""How a process ends that belongs to an MPI job in which others have died."""

import sys
import traceback

from . import _end


def leave_alone(rank: int) -> None:
    """Lets this process end without MPI's last words, which wait for everybody.

    Args:
      rank: this worker, for an exception's message.
    """
    sys.excepthook = _Excepthook(rank)
    _end.leave_alone()


class _Excepthook:
    """Tells of an uncaught exception, which ends this process alone."""

    def __init__(self, rank: int):
        self._rank = rank

    def __call__(self, *exception):
        text = "".join(traceback.format_exception(*exception))
        sys.stderr.write(f"rank {self._rank} failed:\n{text}")
        _end.fail_alone()
