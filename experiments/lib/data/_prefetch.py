"""Data are loaded while others are computed with."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Load(threading.Thread, Generic[T]):
    """One piece that is loaded, or why it could not be."""

    def __init__(self, load: Callable[[int], T], number: int):
        super().__init__(daemon=True)  # It never keeps a process alive.
        self.number, self._load = number, load
        self._result: T | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._load(self.number)
        except BaseException as error:
            self._error = error

    def result(self) -> T:
        self.join()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore


class Prefetch(Generic[T]):
    """Loads the piece after the one that is asked for in the background.

    A context manager; outside of it nothing goes on.

    Args:
      load: `number -> piece`. What it raises for a piece is raised when that is asked
        for.

    Examples:
      >>> with Prefetch(lambda i: 10 * i) as pieces:
      ...     pieces(3), pieces(4), pieces(1)
      (30, 40, 10)
    """

    def __init__(self, load: Callable[[int], T]):
        """Loads nothing yet."""
        self._load = load
        self._next: _Load[T] | None = None

    def __call__(self, number: int) -> T:
        """The piece; any number may be asked for."""
        ahead, self._next = self._next, None
        if ahead is not None and ahead.number == number:
            piece = ahead.result()
        else:
            if ahead is not None:  # Sources need not bear two readers.
                ahead.join()
            piece = self._load(number)
        self._next = _Load(self._load, number + 1)
        return piece

    def __enter__(self) -> "Prefetch[T]":
        """Does nothing."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for what is being loaded, and drops it."""
        if self._next is not None:
            self._next.join()
            self._next = None
