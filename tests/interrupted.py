"""A training that sends a signal to itself, to see what is saved and shown then.

    python -m tests.interrupted SIGNAL RANK EPOCHS OPTIONS

runs `experiments.train OPTIONS`, and sends SIGNAL to the process of rank RANK once
EPOCHS epochs have passed.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from djax.training import Checkpointer
from djax.transport import process_number
from experiments import train
from experiments.lib import runtime


def interrupted(run: Callable, number: int, rank: str, epochs: float) -> Callable:
    """Wraps `run`, whose last argument is called with the epochs that have passed."""

    def wrapped(self: Any, *arguments: Any) -> Any:
        *others, advance = arguments
        passed = 0.0

        def show(more: float) -> None:
            nonlocal passed
            advance(more)
            before, passed = passed, passed + more
            here = str(process_number()) == rank
            if here and before < epochs <= passed:
                os.kill(os.getpid(), number)

        return run(self, *others, show)

    return wrapped


def main() -> None:
    """The command line."""
    name, rank, epochs, *arguments = sys.argv[1:]
    how = getattr(signal, name), rank, float(epochs)
    live = "a2cid2" in arguments  # In real time, epochs pass in fractions.
    owner, method = (runtime.Live, "train") if live else (train.Run, "records")
    setattr(owner, method, interrupted(getattr(owner, method), *how))
    if name == "SIGKILL":  # Earlier checkpoints would still be being written.
        save = functools.partialmethod(Checkpointer.save, wait=True)
        mock.patch.object(Checkpointer, "save", save).start()
    train.main(arguments)


if __name__ == "__main__":
    main()
