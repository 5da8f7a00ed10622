"""Checkpoints, by which a run that was cut off goes on as if it had not been.

:class:`Checkpoints` says where and when to save, and a :class:`Checkpointer` saves and
restores the workers of one process. A loop over steps uses it directly; an asynchronous
run, :func:`djax.asynchronous.run`, makes one of the :class:`Checkpoints` it is given.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from djax._interfaces import Communicator, PyTree

from ._checkpoint_files import Saved, from_numpy, to_numpy
from ._checkpoint_folder import Folder

_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)
"""Settings of JAX that change a run's numbers."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and when the workers of a run are saved.

    In a run in steps all workers save the same step, so that they go on as if nothing
    had happened.

    In an asynchronous run each worker saves by itself, between two of its gradients:
    its model, its states of algorithm and optimizer, its model state, and the number of
    its gradients, which is its place in the data. Since the workers do not save at the
    same moment, an averaging may be in the checkpoint of one worker and not in its
    neighbour's; this moves the mean of the models by as much as the averaging has moved
    one of them. A worker that the others have lost goes on from the state of the worker
    with the most gradients instead of its own old state.

    Attributes:
      directory: shared by all processes; each has a folder of its own in it.
      every: seconds between two checkpoints.
      keep: how many checkpoints are kept, the last ones.
      resume: whether to go on from the last checkpoints, where there are any.
      identity: values by name, such as the name of the data, that a run must have in
        common with the run that it goes on with. The precision of JAX is always
        compared; :func:`djax.asynchronous.run` also compares graph, rates, pairing,
        seed, kind of algorithm and shapes of the parameters.

    Raises:
      ValueError: if `every` or `keep` is not positive.
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
    """Saves and restores the workers of this process.

    A job may be killed at any moment: a step that all processes have saved is removed
    only when all of them have enough newer ones. A step that cannot be written does not
    end the run, but is reported on stderr, and by :meth:`finish`.

    The constructor, :meth:`agree` and :meth:`finish` are called by all processes
    together; unless `together` is False, so are the calls of :meth:`save` for a step.

    Args:
      options: where and when to save.
      communicator: where the workers live.
      identity: values by name, in addition to those of the options, that a run must
        have in common with the run that it goes on with.
      together: whether all processes go on from the same step. If not, as in
        asynchronous runs, each process counts its own steps, and goes on from its own
        last one.
      lazy: whether the folder is made only by the first call of :meth:`save`, for runs
        that save nothing unless they are told to end. They never resume.

    Attributes:
      directory: the folder, as an absolute path.
      latest: the step to go on from; None if there is none.

    Raises:
      CheckpointError: on all processes alike, if the folder belongs to another run, is
        in use by another job or cannot be written to, if it has checkpoints and
        `resume` is False, or if a process's checkpoints are missing or all damaged.

    Examples:
      >>> import djax, jax.numpy as jnp, tempfile
      >>> communicator = djax.communicators.simulated(2)
      >>> folder = tempfile.TemporaryDirectory()
      >>> options = djax.training.Checkpoints(folder.name, resume=True)
      >>> saver = djax.training.Checkpointer(options, communicator)
      >>> saver.save(10, {"x": jnp.ones(2)}, {"epoch": 1})
      >>> saver.close()
      >>> saver = djax.training.Checkpointer(options, communicator)
      >>> tree, content = saver.restore({"x": jnp.zeros(2)})
      >>> print(saver.latest, tree["x"], content)
      10 [1. 1.] {'epoch': 1}
      >>> saver.close()
      >>> folder.cleanup()
    """

    def __init__(
        self,
        options: Checkpoints,
        communicator: Communicator,
        identity: Mapping[str, str] | None = None,
        *,
        together: bool = True,
        lazy: bool = False,
    ):
        """Opens the folder, and finds the step to go on from."""
        self._options, self._communicator = options, communicator
        settings = {name: str(getattr(jax.config, name)) for name in _SETTINGS}
        self._identity = {**(identity or {}), **options.identity, **settings}
        self._together, self._saved = together, time.monotonic()
        self._folder: Folder | None = None
        self._found: Saved | None = None
        self._stale: set[int] = set()
        self.directory = pathlib.Path(options.directory).absolute()
        self.latest: int | None = None
        if not lazy:
            self._open()

    @property
    def due(self) -> bool:
        """Whether this process finds that it is time to save."""
        return time.monotonic() - self._saved >= self._options.every

    def agree(self, word: Any = None) -> tuple[bool, list[Any]]:
        """Lets the processes agree whether to save, and removes what is outdated.

        Args:
          word: anything that the other processes should know, such as a signal.

        Returns:
          Whether any process finds that it is time to save; and the words, at least one
          from each process.
        """
        everyone = self._gather((self.due, word, self._held))
        self._tidy([held for _, _, held in everyone])
        return any(due for due, _, _ in everyone), [word for _, word, _ in everyone]

    def save(
        self, step: int, tree: PyTree, content: Any = None, *, wait: bool = False
    ) -> None:
        """Copies a tree of arrays, and writes the copy while the caller goes on.

        Args:
          step: its number, by which it replaces an older one. No run goes on from
            step 0, which is where it starts anyway.
          tree: arrays, JAX's random keys among them.
          content: what else to save, a value that JSON can hold.
          wait: whether to return only when the step is written.
        """
        self._saved = time.monotonic()
        steps = (self._folder or self._open()).steps
        self._stale.discard(step)
        steps.write(step, [*map(to_numpy, jax.tree.leaves(tree))], content)
        if wait:
            steps.wait_until_written()
        if not self._together:
            self._tidy([self._held])

    def restore(self, like: PyTree) -> tuple[PyTree, Any]:
        """Returns the tree and the content of the latest step, once.

        Args:
          like: a tree of the same structure, shapes and dtypes; what is restored lies
            on the same devices.

        Raises:
          CheckpointError: if the step has arrays of other shapes or dtypes.
          RuntimeError: if there is none, or if it was returned before.
        """
        if self._found is None:
            raise RuntimeError(
                "restore: there is no checkpoint to go on from (`latest` is None), or "
                "it was restored before."
            )
        leaves, structure = jax.tree.flatten(like)
        arrays = self._found.restore([*map(to_numpy, leaves)], self.directory)
        content, self._found = self._found.content, None
        return structure.unflatten(map(from_numpy, arrays, leaves)), content

    def finish(self) -> tuple[str, ...]:
        """Waits until everything is written.

        Returns:
          One line for each step that could not be written, by any process if they save
          together, and else by this process.
        """
        if self._folder is None:
            return ()
        steps = self._folder.steps
        steps.wait_until_written()
        everyone = [(self._held, steps.failures)]
        if self._together:
            everyone = self._gather(everyone[0])
        self._tidy([held for held, _ in everyone])
        return tuple(dict.fromkeys(text for _, texts in everyone for text in texts))

    def close(self, *, wait: bool = True) -> None:
        """Lets other jobs use the folder.

        Args:
          wait: whether to wait until this process has written everything.
        """
        if self._folder is not None:
            self._folder.close(wait=wait)

    @property
    def _held(self) -> frozenset[int]:
        return frozenset() if self._folder is None else self._folder.steps.held

    def _gather(self, value: Any) -> list[Any]:
        """Returns what each process passes, several times if it has several workers."""
        local = len(self._communicator.local_ranks)
        return self._communicator.gather([value] * local)

    def _open(self) -> Folder:
        """Locks the folder, and finds the step to go on from."""
        local, size = self._communicator.local_ranks, self._communicator.size
        own = f"workers_{local[0]}-{local[-1]}_of_{size}"
        folder = Folder(self.directory, own, self._gather, 0 in local)
        if others := folder.others():
            folder.refuse(
                f"checkpoints: {self.directory} is of a run with other processes or "
                f"another number of workers, {others[0]}; choose another folder."
            )
        if folder.used and not self._options.resume:
            folder.refuse(
                f"checkpoints: {self.directory} has some already; use resume=True to "
                "go on from the last one, or choose another folder."
            )
        if folder.used:
            folder.check_complete()
            folder.compare(self._identity)
            step, self._found = folder.find_intact(self._together)
            self.latest = step or None
        folder.begin(self._identity)
        self._sort_out(folder)
        self._folder = folder
        return folder

    def _sort_out(self, folder: Folder) -> None:
        """Decides what becomes of steps that are newer than the one to go on from.

        A step that some process was killed before saving is removed at once. A damaged
        step stays until something newer than `latest` is saved.
        """
        own, latest = set(folder.steps.find()), self.latest or 0
        folder.steps.held = frozenset(step for step in own if step <= latest)
        newer = {step for step in own if step > latest}
        everyones = folder.everyones.values() if self._together else [own]
        self._stale = newer.intersection(*everyones)
        folder.steps.remove(newer - self._stale)

    def _tidy(self, everyones: Sequence[frozenset[int]]) -> None:
        """Removes steps that nobody needs, and says which could not be saved.

        Args:
          everyones: the steps that each process has completely written.
        """
        if self._folder is None:
            return
        steps = self._folder.steps
        steps.complain()
        common = sorted(frozenset.intersection(*everyones) - {0})
        if not common:
            return
        oldest = common[-self._options.keep :][0]
        steps.remove(step for step in steps.held if step < oldest)
        if common[-1] > (self.latest or 0):
            steps.remove(self._stale)
            self._stale = set()
