"""How a process ends that belongs to an MPI job in which others have died."""

import atexit
import os
import sys
import traceback


def leave_alone(rank: int) -> None:
    """Lets this process end without MPI's last words, which wait for everybody.

    Args:
      rank: this worker, for an exception's message.
    """
    sys.excepthook = hook = _Excepthook(rank)
    atexit.register(hook.exit)


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
