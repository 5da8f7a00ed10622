"""What a synchronous run saves, so that it goes on where it was cut off."""

import dataclasses
import os
import pathlib
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import djax
from djax.simulation import Workers
from djax.training._checkpoints import (
    Folder,
    Saved,
    Steps,
    to_numpy,
)

from .errors import UsageError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
_TWICE = 0.5  # Seconds after which a second Ctrl-C is meant as one.


@dataclasses.dataclass(frozen=True)
class Saving:
    """Where and when the workers are saved."""

    checkpoints: pathlib.Path | None = None
    """Folder for checkpoints of every worker. Without it they are saved, in the run's
    own folder, only when SIGTERM or Ctrl-C ends the run, and those of a2cid2 and adpsgd
    not at all."""
    checkpoint_every: float = 600.0
    """Seconds between them."""
    keep_checkpoints: int = 2
    """How many are kept, the last ones."""
    resume: bool = False
    """Go on from the last one, if there is one."""


def check_saving(options: Saving) -> None:
    """Raises UsageError for options that do not fit together.

    Args:
      options: from the command line.
    """
    if options.checkpoints is None and options.resume:
        raise UsageError("--resume needs the folder: --checkpoints.")
    if not 0 < options.checkpoint_every < float("inf"):
        raise UsageError(
            f"--checkpoint-every {options.checkpoint_every} must be positive."
        )
    if options.keep_checkpoints < 1:
        raise UsageError(
            f"--keep-checkpoints {options.keep_checkpoints} must be at least 1."
        )


class Saver:
    """Saves and restores the workers of this process.

    Each process has a folder of its own. A step is of use once all processes have it,
    and goes only when all have enough newer ones, so that a job may be killed at any
    time. See :mod:`djax.training._checkpoints`.

    Args:
      options: where and when.
      communicator: where the workers live.
      identity: what two runs must have in common for one to go on with the other's
        workers, as texts.

    Attributes:
      folder: where the checkpoints are.
      latest: the step to go on from, None if there is none.
      failures: why checkpoints could not be written, on any process; known in the end.
    """

    def __init__(
        self,
        options: Saving,
        communicator: djax.Communicator,
        identity: Mapping[str, str],
    ):
        """Looks for checkpoints, and makes sure that more can be written.

        Raises:
          CheckpointError: on all processes alike, if there are some that are not to be
            resumed, are of another run, or cannot be used; or if nothing can be
            written.
        """
        self._options, self._communicator = options, communicator
        self._identity, self._saved = dict(identity), time.monotonic()
        self._job: Folder | None = None
        self._manager: Steps | None = None
        self._found: Saved | None = None
        self._stale: set[int] = set()
        self.folder: pathlib.Path | None = None
        self.latest: int | None = None
        self.failures: list[str] = []
        if options.checkpoints is not None:
            self.folder = options.checkpoints.absolute()
            self._open(self.folder)

    def fall_back(self, folder: pathlib.Path) -> None:
        """Names the folder, where the options name none."""
        self.folder = self.folder or folder.absolute()

    def _open(self, path: pathlib.Path) -> None:
        """Looks for the last step that all processes have."""
        local, size = self._communicator.local_ranks, self._communicator.size
        own = f"workers_{local[0]}-{local[-1]}_of_{size}"
        job = Folder(path, own, self._gather, 0 in local)
        if others := job.others("workers_*_of_*"):
            job.refuse(
                f"--checkpoints {path} is of a run with other processes, {others[0]}; "
                "choose another folder."
            )
        if job.used and not self._options.resume:
            job.refuse(
                f"--checkpoints {path} has some already; add --resume to go on from "
                "the last one, or choose another folder."
            )
        if job.used:
            job.check_complete()
            job.compare(self._identity)
            step, self._found = job.find_intact(common=True)
            self.latest = step or None
        job.begin(self._identity)
        self._job, self._manager = job, job.steps
        self._sort_out(job)

    def _sort_out(self, job: Folder) -> None:
        """Settles what happens to steps that are not those to go on from.

        What others were killed before they had saved goes at once. What is damaged
        stays until there is something newer.
        """
        own, latest = set(job.steps.find()), self.latest or 0
        common = set.intersection(*map(set, job.everyones.values()))
        job.steps.held = frozenset(step for step in own if step <= latest)
        newer = {step for step in own if step > latest}
        self._stale = newer & common
        job.steps.remove(newer - common)

    def _gather(self, value: Any) -> list[Any]:
        """What each process has; of all workers in one process one is enough."""
        local = len(self._communicator.local_ranks)
        return self._communicator.gather([value] * local)

    @property
    def due(self) -> bool:
        """Whether it is time to save; another process may see it otherwise."""
        past = time.monotonic() - self._saved
        return (
            self._options.checkpoints is not None
            and past >= self._options.checkpoint_every
        )

    @property
    def held(self) -> frozenset[int]:
        """The steps that this process has completely written."""
        return frozenset() if self._manager is None else self._manager.held

    def save(self, step: int, workers: Workers, progress: Mapping[str, Any]) -> None:
        """Copies the workers, and writes them behind the caller's back.

        Args:
          step: how many they have done.
          workers: of this process.
          progress: what else has to be known, that JSON can hold.
        """
        assert self.folder is not None
        self._saved = time.monotonic()
        if self._manager is None:
            self._open(self.folder)
        assert self._manager is not None
        self._stale.discard(step)
        self._manager.save(
            step, [*map(to_numpy, jax.tree.leaves(workers))], dict(progress)
        )

    def settle(self, everyones: Sequence[frozenset[int]]) -> None:
        """Removes what nobody needs any more, and says what could not be saved.

        Args:
          everyones: steps that each process has completely written.
        """
        if self._manager is None:
            return
        self._manager.complain()
        common = sorted(frozenset.intersection(*everyones) - {0})
        if not common:
            return
        oldest = common[-self._options.keep_checkpoints :][0]
        self._manager.remove(s for s in self._manager.held if s < oldest)
        if common[-1] > (self.latest or 0):
            self._manager.remove(self._stale)
            self._stale = set()

    def restore(self, like: Workers) -> tuple[Workers, dict[str, Any]]:
        """The latest checkpoint.

        Args:
          like: workers of the same shapes.

        Returns:
          The workers, and the progress that was saved with them.

        Raises:
          CheckpointError: if it is of workers of other shapes.
        """
        assert self._found is not None
        leaves, structure = jax.tree.flatten(like)
        arrays = self._found.restore([*map(to_numpy, leaves)], self.folder)
        restored = list(map(_from_numpy, arrays, leaves))
        progress, self._found = self._found.content, None
        return jax.tree.unflatten(structure, restored), progress

    def finish(self) -> None:
        """Waits until all processes have written everything; all call it together."""
        if self._manager is None:
            return
        self._manager.wait_until_finished()
        everyone = self._gather((self._manager.held, self._manager.failures))
        self.settle([held for held, _ in everyone])
        texts = [text for _, failures in everyone for text in failures]
        self.failures = list(dict.fromkeys(texts))

    def close(self) -> None:
        """Waits until this process has written everything, and unlocks the folder."""
        if self._job is not None:
            self._job.close()
            self._job = self._manager = None


def _from_numpy(array: Any, like: Any) -> jax.Array:
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    return jax.device_put(array, like.sharding)


class Termination:
    """Hears SIGTERM and Ctrl-C, by which a run is told to end.

    Schedulers announce by SIGTERM that a job's time is over; Ctrl-C is SIGINT. A
    context manager; outside of it, and in threads other than the main one, the signals
    do what they did before. A second Ctrl-C ends the process at once.

    Args:
      listen: False for one that hears nothing.

    Attributes:
      requested: whether a signal came.
      number: which one.
    """

    def __init__(self, *, listen: bool = True):
        """Nothing was heard."""
        self.requested, self.number = False, int(signal.SIGTERM)
        self._listens, self._heard = listen, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Termination":
        """Starts to listen."""
        main = threading.current_thread() is threading.main_thread()
        if self._listens and main:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def _hear(self, number, frame):
        now = time.monotonic()
        # A terminal and a launcher may both pass on the same Ctrl-C.
        if self.requested and number == signal.SIGINT and now - self._heard > _TWICE:
            os.write(2, b"ended at once by a second Ctrl-C\n")
            os._exit(INTERRUPTED)
        if not self.requested:
            self.number, self._heard = number, now
        self.requested = True

    def __exit__(self, *error: object) -> None:
        """Stops."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
