"""Finds out where the main thread of Python stands, and for how long.

A thread that asks this can say what a process waits for when a call neither returns nor
raises an error.
"""

import ctypes
import functools
import math
import os
import pathlib
import sysconfig
import threading
import time
from types import FrameType
from typing import Any

from djax._tracing import last_traced

from ._exit_code import main_frame
from ._watch import say

WATCHDOG = "DJAX_WATCHDOG", 300.0
"""Environment variable, and its default: seconds after which a process that waits says
what it waits for; 0 if it never does."""

_PENDING = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_DJAX = str(pathlib.Path(__file__).parent.parent / "_")[:-1]
_STANDARD = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")}
)
_INSTALLED = "site-packages", "dist-packages"


def watchdog_seconds() -> float:
    """Returns the time that :data:`WATCHDOG` sets; raises ValueError if it is none."""
    name, default = WATCHDOG
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise ValueError(
            f"{name}={text} must be a number of seconds, or 0 for no watchdog."
        )
    return value


def pause(limit: float) -> float:
    """Seconds between two looks of a thread that notices what takes `limit` seconds."""
    return min(max(limit / 10, 0.05), 30.0)


class Standstill:
    """Measures for how long the main thread has executed no instruction of Python."""

    def __init__(self):
        """Starts to measure when it is asked for the first time."""
        self._moved, self._asked = True, 0.0
        self._move = _PENDING(self._note_move)

    def seconds(self) -> float:
        """Returns for how long the main thread stands still, as far as is known.

        It is to be called again and again, by another thread.
        """
        now = time.monotonic()
        if self._moved:
            # The main thread runs this call between two instructions of Python. So the
            # call shows whether the program makes progress.
            self._moved, self._asked = False, now
            ctypes.pythonapi.Py_AddPendingCall(self._move, None)
        return now - self._asked

    def _note_move(self, _: Any) -> int:
        self._moved = True
        return 0


def python_place() -> str:
    """Says where the main thread stands, in the innermost code that is the user's."""
    frame = main_frame()
    while frame is not None and _is_library(frame):
        frame = frame.f_back
    if frame is None:
        return "no line of your program"
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno}, in {code.co_name}"


def _is_library(frame: FrameType) -> bool:
    """Whether a frame executes code of djax, Python, or an installed package."""
    file = frame.f_code.co_filename
    installed = any(name in file for name in _INSTALLED)
    return installed or file.startswith((_DJAX, "<frozen ", *_STANDARD))


@functools.cache
@functools.cache  # One thread is enough.
def watch_results(who: str) -> None:
    """Starts a thread that says when the main thread waits too long for a result.

    It is for programs whose exchanges between processes are a matter of XLA, which says
    nothing while it waits. Whether a computation is long, or waits for another process,
    cannot be told from outside; so the thread only tells what it sees. It says nothing
    if Python waits for something in its own library, such as a thread or a child.

    Args:
      who: names this process, such as "process 1 of 4".

    Raises:
      ValueError: if :data:`WATCHDOG` is no number of seconds.
    """
    if limit := watchdog_seconds():
        threading.Thread(
            target=_watch_results, args=(who, limit), name="djax watchdog", daemon=True
        ).start()


def _watch_results(who: str, limit: float) -> None:
    standstill, due = Standstill(), limit
    while threading.main_thread().is_alive():
        time.sleep(pause(limit))
        seconds = standstill.seconds()
        if seconds < due:
            due = due if seconds > limit else limit
            continue
        due = seconds + limit
        frame = main_frame()
        if frame is not None and not frame.f_code.co_filename.startswith(_STANDARD):
            names = ", ".join(last_traced(3)) or "none"
            say(
                f"{who} has stood at {python_place()} for {seconds:.0f} s. If it waits "
                "there for a result of JAX: does every process run this program? The "
                "usual reason is a condition around a mechanism that differs between "
                f"processes. Mechanisms traced last: {names}."
            )
