"""Loads the next piece of data in a thread while the device works on the last one."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Returns pieces by number, and loads the following piece in a thread meanwhile.

    An error that `load` raises for a piece is raised again when that piece is
    requested. Leaving the context waits for the thread, which is a daemon, so it never
    keeps a process alive as a thread of an executor would.

    Examples:
      >>> with Prefetch(lambda i: 10 * i) as pieces:
      ...     pieces(3), pieces(4), pieces(1)
      (30, 40, 10)
    """

    def __init__(self, load: Callable[[int], T]):
        """Keeps the function; nothing is loaded yet."""
        self._load = load
        self._ahead: tuple[int, Future[T]] | None = None

    def __call__(self, number: int) -> T:
        """Returns the piece with this number, and begins to load the next one.

        Numbers may come in any order, but only consecutive ones profit.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == number:
            piece = ahead[1].result()
        else:
            if ahead is not None:  # `load` may not be safe to run in two threads.
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
        """Enters the context; nothing is loaded yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until the thread has loaded its piece, and discards that piece."""
        if self._ahead is not None:
            wait([self._ahead[1]])
            self._ahead = None
