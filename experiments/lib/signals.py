"""Handles SIGTERM and Ctrl-C, the signals that tell a run to end.

Schedulers send SIGTERM before a job's time is over; Ctrl-C is SIGINT. The run should
then finish its step, save the workers, and say how it can be continued.
"""

import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C, the same as that of shells."""
_TWICE = 0.5
"""Seconds within which a second Ctrl-C is ignored, since a terminal and a launcher may
both pass on the same key press."""


class Termination:
    """A context manager that notes signals which tell a run to end.

    Outside of the context, and in threads other than the main one, signals keep their
    usual effect. A second Ctrl-C ends the process at once. With `listen=False` nothing
    is noted.

    A function `raises` is called with the first signal as soon as it comes, and raises;
    it is for code that saves nothing and may stop in the middle of a step. The `number`
    is the first signal that came, or 0.
    """

    def __init__(
        self, *, listen: bool = True, raises: Callable[[int], NoReturn] | None = None
    ):
        """Notes nothing before the context is entered."""
        self.number, self._heard, self._raises = 0, 0.0, raises
        self._signals = (signal.SIGTERM, signal.SIGINT) if listen else ()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Termination":
        """Replaces the handlers of both signals."""
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def _hear(self, number: int, frame: Any) -> None:
        del frame
        now = time.monotonic()
        if not self.number:
            self.number, self._heard = int(number), now
            if self._raises is not None:
                self._raises(number)
        elif number == signal.SIGINT and now - self._heard > _TWICE:
            os.write(2, b"ended at once by a second Ctrl-C\n")
            os._exit(INTERRUPTED)

    def __exit__(self, *error: object) -> None:
        """Restores the previous handlers."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}


class Stopped(Exception):
    """Raised if a signal ends a run.

    The `directory` is the folder of the checkpoints from which the run can continue;
    None if there are none.
    """

    def __init__(
        self, message: str, code: int, directory: pathlib.Path | str | None = None
    ):
        """Keeps the message, the exit code and the folder."""
        super().__init__(message)
        self.code, self.directory = code, directory


def stopped_and_saved(
    number: int, directory: pathlib.Path | str, unsaved: Sequence[str], when: str = ""
) -> Stopped:
    """Makes the exception for a run whose workers are saved.

    If all workers stopped at the same step, `when` says so, as in " after step 22".
    """
    said = f"stopped by {name_of(number)}{when}"
    code = INTERRUPTED if number == signal.SIGINT else 0
    if unsaved:
        said += f", but not all checkpoints could be saved: {unsaved[-1]}"
        return Stopped(said, code or 1, directory)
    return Stopped(said, code, directory)


def stopped_unsaved(number: int, why: str) -> Stopped:
    """Makes the exception for a run that saves nothing when a signal ends it."""
    return Stopped(f"stopped by {name_of(number)}; {why}", 128 + number)


def interrupt(number: int) -> NoReturn:
    """Raises for SIGTERM what Python raises for Ctrl-C, with the number of the signal.

    This is for the parts of a program that no loop over steps looks after.
    """
    raise KeyboardInterrupt(number)


def name_of(number: int) -> str:
    """Returns how a signal is called in messages."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
