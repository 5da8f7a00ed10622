"""What a worker saves, so that a run can go on after it was cut off."""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np

from djax._base import PyTree


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and when the workers of a run save what they have; needs orbax.

    Every worker saves by itself, between two of its gradients: its model, its state of
    the algorithm with the second copy of the model and the optimizer's state, its model
    state and the number of its gradients, which is its place in the data, too. Since
    the workers do not save at the same moment, averagings between two of their moments
    may be in one and not in the other, which moves the mean by as much.

    Args:
      directory: shared by all workers; each has a folder of its own in it.
      every: seconds between two checkpoints.
      keep: how many are kept, the last ones.
      resume: whether to go on from the last ones, where there are any.
    """

    directory: str | pathlib.Path
    every: float = 600.0
    keep: int = 2
    resume: bool = False

    def __post_init__(self):
        if not (self.every > 0 and self.keep >= 1):
            raise ValueError(
                "Checkpoints: every and keep must be positive, got "
                f"{self.every} and {self.keep}."
            )


class Checkpointer:
    """Saves and restores one worker.

    Args:
      options: where and when.
      comm: an MPI communicator of all workers.
    """

    def __init__(self, options: Checkpoints, comm: Any):
        """Opens the worker's folder.

        Raises:
          ModuleNotFoundError: if orbax is missing.
          ValueError: if the folder is of another number of workers, or has checkpoints
            that are not to be resumed.
        """
        try:
            import orbax.checkpoint as ocp
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                'checkpoints need orbax: pip install "djax-gossip[asynchronous]".'
            ) from None
        self._ocp, self._options, self._saved = ocp, options, time.monotonic()
        everything = pathlib.Path(options.directory).absolute()
        folder = everything / f"worker_{comm.rank}_of_{comm.size}"
        others = [
            path.name
            for path in everything.glob("worker_*_of_*")
            if not path.name.endswith(f"_of_{comm.size}")
        ]
        if others:
            raise ValueError(
                f"checkpoints: {everything} is of a run with another number of "
                f"workers, {others[0]}; choose another directory."
            )
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=options.keep, create=True),
        )
        self.latest = self._manager.latest_step()
        if self.latest is not None and not options.resume:
            self._manager.close()
            raise ValueError(
                f"checkpoints: {folder} has one already; use resume=True to go on from "
                "it, or choose another directory."
            )
        everyones = comm.allgather(self.latest)
        if None in everyones and set(everyones) != {None}:
            raise ValueError(
                f"checkpoints: {everything} has some, but none of worker "
                f"{everyones.index(None)}; choose another directory."
            )

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self._options.every

    def save(self, finished: int, tree: PyTree) -> None:
        """Copies a tree of arrays, and writes it behind the caller's back."""
        self._saved = time.monotonic()
        copied = jax.tree.map(lambda x: np.array(x), tree)
        if finished == self._manager.latest_step():  # Averagings may have followed.
            self._manager.wait_until_finished()
            self._manager.delete(finished)
        self._manager.save(finished, args=self._ocp.args.StandardSave(copied))

    def restore(self, like: PyTree) -> Any:
        """Reads the latest checkpoint, of the shapes of `like`.

        Raises:
          ValueError: if it has other shapes.
        """
        found = self._manager.restore(
            self.latest, args=self._ocp.args.StandardRestore(like)
        )
        kinds = [
            jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), tree)
            for tree in (like, found)
        ]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"checkpoints: the saved arrays are {kinds[1]}, and not {kinds[0]}."
            )
        return jax.tree.map(jax.numpy.asarray, found)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()
