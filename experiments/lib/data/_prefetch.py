"""Loads data while the data before them are computed with."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Loads the piece after the one that was asked for, in a thread.

    It is a context manager; when the context is left, no thread goes on. The thread
    never keeps a process alive, as one of an executor would.

    Args:
      load: `number -> piece`. What it raises for a piece is raised when that piece is
        asked for.

    Examples:
      >>> with Prefetch(lambda i: 10 * i) as pieces:
      ...     pieces(3), pieces(4), pieces(1)
      (30, 40, 10)
    """

    def __init__(self, load: Callable[[int], T]):
        """Loads nothing yet."""
        self._load = load
        self._ahead: tuple[int, Future[T]] | None = None

    def __call__(self, number: int) -> T:
        """Returns a piece; any number may be asked for."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == number:
            piece = ahead[1].result()
        else:
            if ahead is not None:  # A source need not bear two readers at a time.
                wait([ahead[1]])
            piece = self._load(number)
        result: Future[T] = Future()
        self._ahead = number + 1, result
        threading.Thread(
            target=self._run, args=(number + 1, result), daemon=True
        ).start()
        return piece

    def _run(self, number: int, result: Future[T]) -> None:
        try:
            result.set_result(self._load(number))
        except BaseException as error:
            result.set_exception(error)

    def __enter__(self) -> "Prefetch[T]":
        """Does nothing."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for what is being loaded, and drops it."""
        if self._ahead is not None:
            wait([self._ahead[1]])
            self._ahead = None
