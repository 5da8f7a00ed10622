"""Data are loaded while others are computed with."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")


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
        self._ahead: dict[int, Future[T]] = {}

    def __call__(self, number: int) -> T:
        """The piece; any number may be asked for."""
        self.__exit__()  # Sources need not bear two readers.
        ahead = self._ahead.pop(number, None)
        piece = self._load(number) if ahead is None else ahead.result()
        self._ahead = {number + 1: Future()}
        # A daemon never keeps a process alive.
        threading.Thread(target=self._run, args=(number + 1,), daemon=True).start()
        return piece

    def _run(self, number: int) -> None:
        future = self._ahead[number]
        try:
            future.set_result(self._load(number))
        except BaseException as error:
            future.set_exception(error)

    def __enter__(self) -> "Prefetch[T]":
        """Does nothing."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for what is being loaded."""
        wait(self._ahead.values())
