"""What a worker saves, so that a run can go on after it was cut off."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from djax._interfaces import PyTree
from djax.training._checkpoints import (
    Folder,
    to_numpy,
)


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and when the workers of a run save what they have.

    Every worker saves by itself, between two of its gradients: its model, its state of
    the algorithm with the second copy of the model and the optimizer's state, its model
    state and the number of its gradients, which is its place in the data, too. Since
    the workers do not save at the same moment, averagings between two of their moments
    may be in one and not in the other, which moves the mean by as much.

    A worker that the others have lost, and that takes part again, goes on from the
    state of the one with the most gradients, instead of its own old one.

    Args:
      directory: shared by all workers; each has a folder of its own in it.
      every: seconds between two checkpoints.
      keep: how many are kept, the last ones.
      resume: whether to go on from the last ones, where there are any.
      identity: what else, by name, a run has to have in common with the one that it
        goes on with, such as its data. Graph, rates, pairing, seed, the kind of
        algorithm, parameters and JAX's precision are compared anyway.
    """

    directory: str | pathlib.Path
    every: float = 600.0
    keep: int = 2
    resume: bool = False
    identity: Mapping[str, str] = dataclasses.field(default_factory=dict)

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
      identity: what this run must have in common with the one it goes on with.

    Attributes:
      latest: number of gradients of the checkpoint to go on from, or None.
      lost: the workers that this checkpoint names as lost.
    """

    def __init__(self, options: Checkpoints, comm: Any, identity: Mapping[str, str]):
        """Opens the worker's folder, and makes sure that it can be written to.

        Raises:
          CheckpointError: on all workers alike, if the folder is of another run, is
            used by another job, cannot be written to, or has checkpoints that are
            damaged, incomplete or not to be resumed.
        """
        self._options, self._saved = options, time.monotonic()
        path = pathlib.Path(options.directory).absolute()
        own = f"worker_{comm.rank}_of_{comm.size}"
        identity = {**identity, **options.identity}
        self._folder = job = Folder(path, own, comm.allgather, comm.rank == 0)
        if others := job.others("worker_*_of_*"):
            job.refuse(
                f"checkpoints: {path} is of a run with another number of workers, "
                f"{others[0]}; choose another directory."
            )
        if job.used and not options.resume:
            job.refuse(
                f"checkpoints: {job.steps.folder} has one already; use resume=True to "
                "go on from it, or choose another directory."
            )
        self.latest, self._found, self.lost = None, None, frozenset()
        if job.used:
            job.check_complete()
            job.compare(identity)
            step, self._found = job.find_intact(common=False)
            self.latest = step or None
            self.lost = frozenset((self._found.content or {}).get("lost", ()))
        job.begin(identity)
        self._steps = job.steps
        # What is newer than that is damaged; it stays until there is something newer.
        self._steps.held = frozenset(
            step for step in self._steps.find() if step <= (self.latest or 0)
        )

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self._options.every

    @property
    def failures(self) -> tuple[str, ...]:
        """Why checkpoints could not be written."""
        return tuple(self._steps.failures)

    def save(
        self,
        finished: int,
        tree: PyTree,
        lost: Sequence[int] = (),
        *,
        wait: bool = False,
    ) -> None:
        """Copies a tree of arrays, and writes it behind the caller's back.

        A checkpoint of the same number is replaced: averagings may have followed.

        Args:
          finished: number of the worker's gradients.
          tree: of arrays.
          lost: ranks of the workers that are lost.
          wait: whether to return only when it is written.
        """
        self._saved = time.monotonic()
        copied = [*map(to_numpy, jax.tree.leaves(tree))]
        self._steps.save(finished, copied, {"lost": sorted(lost)})
        if wait:
            self._steps.wait_until_finished()
        self._steps.complain()
        self._tidy()

    def _tidy(self) -> None:
        """Removes all but the last ones; what is being written does not count yet."""
        held = sorted(self._steps.held - {0})
        kept = held[-self._options.keep :]
        if held and held[-1] > (self.latest or 0):
            damaged = set(self._steps.find()) - set(held)
            self._steps.remove(s for s in damaged if s < held[-1])
        if kept:
            self._steps.remove(s for s in self._steps.held if s < kept[0])

    def restore(self, like: PyTree) -> Any:
        """The latest checkpoint, of the shapes of `like`.

        Raises:
          CheckpointError: if it has other shapes.
        """
        assert self._found is not None
        leaves, structure = jax.tree.flatten(like)
        arrays = self._found.restore(
            [*map(to_numpy, leaves)], self._folder.steps.folder
        )
        self._found = None
        return jax.tree.unflatten(structure, [*map(from_numpy, arrays, leaves)])

    def close(self) -> None:
        """Waits until everything is written, and unlocks the folder."""
        self._steps.wait_until_finished()
        self._steps.complain()
        self._tidy()
        self._folder.close()

    def abandon(self) -> None:
        """Unlocks the folder at once; what is not written by then is left away."""
        self._folder.unlock()


def from_numpy(array: Any, like: Any) -> Any:
    """An array of JAX of the kind of `like`, which may be random keys."""
    if jax.dtypes.issubdtype(getattr(like, "dtype", None), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    return jax.numpy.asarray(array)
