"""Finds out the exit code with which this process is about to end.

Python does not tell the exit code to functions that are registered with `atexit`. The
argument of `sys.exit` alone is not enough, since the program may have caught this exit
and ended regularly afterwards.
"""

import dis
import sys
import threading
from types import FrameType
from typing import Any, NoReturn


class ExitCode:
    """Remembers the argument of `sys.exit`, and finds out whether it takes effect."""

    def __init__(self):
        """Replaces `sys.exit`, and remembers the program's outermost frame."""
        self._frame = frame = main_frame()
        while frame is not None:
            self._frame, frame = frame, frame.f_back
        self._code, self._exit = None, sys.exit
        sys.exit = self._remember

    def _remember(self, status: Any = None, /) -> NoReturn:
        if threading.current_thread() is threading.main_thread():
            self._code = status
        self._exit(status)

    def __call__(self) -> int:
        """Returns the exit code; to be called from a function that `atexit` runs."""
        if self._code is None or not self._left_by_exception():
            return 0
        return int(self._code) if isinstance(self._code, int) else 1

    def _left_by_exception(self) -> bool:
        """Whether the outermost frame was left by an exception, such as `SystemExit`.

        Otherwise an exit was caught, and the program came to its regular end.
        """
        if self._frame is None:
            return True
        instruction = dis.opname[self._frame.f_code.co_code[self._frame.f_lasti]]
        return not instruction.startswith("RETURN")


def main_frame() -> FrameType | None:
    """Returns the frame that the main thread executes."""
    return sys._current_frames().get(threading.main_thread().ident or 0)
