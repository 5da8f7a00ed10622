"""Checkpoints, from which an interrupted run continues as if nothing had happened.

:class:`Checkpoints` says where and when to save. A :class:`Checkpointer` saves and
restores the workers of one process. A loop over steps uses a :class:`Checkpointer`
directly. The user of :func:`djax.asynchronous.run` passes :class:`Checkpoints`, from
which it makes a :class:`Checkpointer` itself.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from djax._interfaces import Communicator, PyTree
from djax.communicators import gather_from_processes

from ._checkpoint_files import (
    CheckpointError,
    Saved,
    from_parts,
    parts_of,
    places_of,
)
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

    In a synchronous run all workers save the same step, so that a resumed run continues
    as if it had not been interrupted.

    In an asynchronous run each worker saves on its own, between two of its gradients.
    It saves its model, the states of its algorithm and optimizer, its model state, and
    the number of its gradients, which is its position in the data. The workers do not
    save at the same moment. So an averaging may be contained in the checkpoint of one
    worker and not in that of its neighbour. In the resumed run the neighbour's
    displacement is missing, and the sum of all models differs by this displacement. A
    worker that the others gave up as lost does not continue from its own old
    checkpoint, but from the state of the remaining worker with the most gradients.

    Attributes:
      directory: folder that all processes share. Each has a folder of its own in it.
      every: seconds between two checkpoints.
      keep: number of checkpoints that are kept; older ones are removed.
      resume: whether to continue from the last checkpoints, if there are any.
      identity: values by name, such as the name of the data, that have to be equal in
        the interrupted and the resumed run. The precision of JAX is always compared.
        :func:`djax.asynchronous.run` also compares graph, rates, pairing, seed, kind of
        algorithm and shapes of the parameters.

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

    Since a job may be killed at any moment, a step that all processes have saved is
    removed only when all of them have saved `keep` newer ones. If a step cannot be
    written, the run continues. The failure is reported on stderr and by :meth:`finish`.

    All processes have to call the constructor, :meth:`agree` and :meth:`finish`
    together. If `together` is True, they also have to save the same steps.

    Args:
      options: where and when to save.
      communicator: where the workers live.
      identity: further values by name, in addition to those of the options, that have
        to be equal in the interrupted and the resumed run.
      together: whether all processes continue from the same step. If False, as in
        asynchronous runs, each process counts its own steps and continues from its own
        last one.
      lazy: whether the folder is made only by the first call of :meth:`save`. This is
        for runs that save nothing unless they are told to end. They never resume.

    Attributes:
      directory: the folder, as an absolute path.
      latest: the step from which the run continues; None if there is none.

    Raises:
      CheckpointError: on all processes, if the folder belongs to another run, is in use
        by another job or cannot be written to; if it has checkpoints although `resume`
        is False; or if the checkpoints of a process are missing or all damaged.

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
        """Opens the folder, and finds the step from which to continue."""
        self._options = options
        # The whole, if it is a level of groups.
        self._communicator = getattr(communicator, "whole", communicator)
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
        """Whether this process has not saved for `every` seconds."""
        return time.monotonic() - self._saved >= self._options.every

    def agree(self, word: Any = None) -> tuple[bool, list[Any]]:
        """Lets the processes agree whether to save now, and removes outdated steps.

        Args:
          word: a value for all processes to know, such as a signal that this process
            has received.

        Returns:
          Whether :attr:`due` holds on any process, and the words of all processes.
        """
        everyone = self._gather((self.due, word, self._held))
        self._tidy([held for _, _, held in everyone])
        return any(due for due, _, _ in everyone), [word for _, word, _ in everyone]

    def save(
        self, step: int, tree: PyTree, content: Any = None, *, wait: bool = False
    ) -> None:
        """Copies a tree of arrays, and writes the copy in the background.

        Args:
          step: number of the step. If this step was saved before, it is replaced. A run
            never continues from step 0, since it starts there anyway.
          tree: the arrays, which may be random keys of JAX.
          content: a further value to save, which has to be valid JSON.
          wait: whether to return only when the step is written.
        """
        self._saved = time.monotonic()
        steps = (self._folder or self._open()).steps
        self._stale.discard(step)
        leaves = jax.tree.leaves(tree)
        parts = [part for leaf in leaves for part in parts_of(leaf)]
        steps.write(step, [*parts, *places_of(leaves)], content)
        if wait:
            steps.wait_until_written()
        if not self._together:
            self._tidy([self._held])

    def restore(self, like: PyTree) -> tuple[PyTree, Any]:
        """Returns the tree and the content of the latest step; can be called once.

        Args:
          like: a tree of the same structure, shapes and dtypes. The restored arrays
            are put on the devices of its arrays.

        Raises:
          CheckpointError: if the step has arrays of other shapes or dtypes.
          RuntimeError: if there is no checkpoint, or it was restored before.
        """
        if self._found is None:
            raise RuntimeError(
                "restore: there is no checkpoint to go on from (`latest` is None), or "
                "it was restored before."
            )
        leaves, structure = jax.tree.flatten(like)
        parts = [parts_of(leaf) for leaf in leaves]
        wanted = [part for each in parts for part in each]
        places = places_of(leaves)
        found = self._found.restore([*wanted, *places], self.directory)
        if not np.array_equal(places, found[len(wanted) :]):
            raise CheckpointError(
                f"checkpoints: {self.directory} has other parts of arrays than this "
                "run, which has other specs or devices in another order; choose "
                "another folder."
            )
        arrays = iter(found)
        restored = [
            from_parts([next(arrays) for _ in each], leaf)
            for each, leaf in zip(parts, leaves, strict=True)
        ]
        content, self._found = self._found.content, None
        return structure.unflatten(restored), content

    def finish(self) -> tuple[str, ...]:
        """Waits until everything is written.

        Returns:
          One line of text for each step that could not be written by any process if
          `together` is True, and else by this process.
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
        """Unlocks the folder, so that other jobs can use it.

        Args:
          wait: whether to wait until this process has written everything.
        """
        if self._folder is not None:
            self._folder.close(wait=wait)

    @property
    def _held(self) -> frozenset[int]:
        return frozenset() if self._folder is None else self._folder.steps.held

    def _gather(self, value: Any) -> list[Any]:
        """Collects a value from each process."""
        return gather_from_processes(self._communicator, value)

    def _open(self) -> Folder:
        """Locks the folder, and finds the step from which to continue."""
        local, size = self._communicator.local_ranks, self._communicator.size
        own = f"workers_{local[0]}-{local[-1]}_of_{size}"
        everyones = self._gather((jax.process_index(), own))
        if [name for _, name in everyones].count(own) > 1:
            # One worker has devices in several processes, each of which has its part.
            own += f"_process_{jax.process_index()}"
        leads = 0 in local
        if getattr(self._communicator, "sharding", None) is not None:
            leads = everyones[0][0] == jax.process_index()
        folder = Folder(self.directory, own, self._gather, leads)
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
        """Decides what happens to steps that are newer than `latest`.

        If a process was killed before it saved such a step, the others remove the step
        at once. If all processes have saved the step, it is damaged on one of them. It
        stays until a step newer than `latest` is saved.
        """
        own, latest = set(folder.steps.find()), self.latest or 0
        folder.steps.held = frozenset(step for step in own if step <= latest)
        newer = {step for step in own if step > latest}
        everyones = folder.everyones.values() if self._together else [own]
        self._stale = newer.intersection(*everyones)
        folder.steps.remove(newer - self._stale)

    def _tidy(self, everyones: Sequence[frozenset[int]]) -> None:
        """Removes outdated steps, and reports steps that could not be written.

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
