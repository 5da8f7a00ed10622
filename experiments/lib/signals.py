"""SIGTERM and Ctrl-C, by which a run is told to end.

Schedulers announce by SIGTERM that a job's time is over; Ctrl-C is SIGINT. A run should
not end in the middle of a step then, but save what it has, and say how to go on.
"""

import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
_TWICE = 0.5
"""Seconds after which a second Ctrl-C is meant as one: a terminal and a launcher may
both pass on the same one."""


class Termination:
    """Notes the signals that tell a run to end, while its context is entered.

    Outside of the context, and in threads other than the main one, the signals do what
    they did before. A second Ctrl-C ends the process at once.

    Args:
      listen: False for a context that notes nothing.
      raises: called with the signal as soon as it comes, by code that saves nothing
        and may therefore be ended in the middle of a step.

    Attributes:
      number: the first signal that came; 0 if none did.
    """

    def __init__(
        self, *, listen: bool = True, raises: Callable[[int], NoReturn] | None = None
    ):
        """Notes nothing before the context is entered."""
        self.number = 0
        self._listens, self._raises, self._heard = listen, raises, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Termination":
        """Replaces the handlers of both signals."""
        main = threading.current_thread() is threading.main_thread()
        if self._listens and main:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def _hear(self, number: int, frame: Any) -> None:
        del frame
        if self._raises is not None:
            self._raises(number)
        now = time.monotonic()
        if self.number and number == signal.SIGINT and now - self._heard > _TWICE:
            os.write(2, b"ended at once by a second Ctrl-C\n")
            os._exit(INTERRUPTED)
        if not self.number:
            self.number, self._heard = int(number), now

    def __exit__(self, *error: object) -> None:
        """Puts the handlers back that were there before."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}


class Stopped(Exception):
    """A run was told to end; its message says where what it has is saved.

    Args:
      message: why it ended, and how to go on.
      code: exit code of the process.
    """

    def __init__(self, message: str, code: int = 0):
        """Takes the message and the code."""
        super().__init__(message)
        self.code = code


def stopped_and_saved(
    number: int, directory: pathlib.Path | str, unsaved: Sequence[str], when: str = ""
) -> Stopped:
    """Makes the exception of a run whose workers are saved.

    Args:
      number: the signal.
      directory: where the checkpoints are.
      unsaved: why some could not be written.
      when: " after step 22", if all workers have come to the same step.
    """
    how, code = _name(number), INTERRUPTED if number == signal.SIGINT else 0
    rest = f"start the same with --checkpoints {directory} --resume"
    if unsaved:
        return Stopped(
            f"stopped by {how}{when}, but not all checkpoints could be saved: "
            f"{unsaved[-1]}; to go on from the last ones, {rest}",
            code or 1,
        )
    return Stopped(f"stopped by {how}{when}; to go on, {rest}", code)


def stopped_unsaved(number: int, why: str) -> Stopped:
    """Makes the exception of a run that a signal ends and that saves nothing.

    Args:
      number: the signal.
      why: nothing is saved.
    """
    return Stopped(f"stopped by {_name(number)}; {why}", 128 + number)


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
