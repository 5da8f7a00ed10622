"""Groups of workers that are one worker of an asynchronous run.

The members of a group, such as the ranks of a node, compute each gradient together: it
is the mean of their own gradients. Between groups, each member averages its own share
of the coordinates, with the members at the same place of other groups. Asynchronous
algorithms treat each coordinate by itself, so that each place makes a run of its own,
and the times of its averagings differ from those of other places. A gradient waits for
all members of its group, and for no other group.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays.finite import all_finite
from djax._arrays.shares import collect_shares, own_share
from djax._interfaces import PyTree
from djax.training import Checkpointer, CheckpointError, Checkpoints, GradientFn

from ._averager import WorkerSnapshot


class Alone:
    """A worker that is no group: it has the whole model, and agrees with itself."""

    def __init__(self, communicator: Any):
        """Takes the communicator of all workers."""
        self.circle = communicator

    def any(self, *flags: Any) -> np.ndarray:
        """Returns for each flag whether it is true for any member."""
        return np.asarray(flags, bool)

    def first(self, value: Any) -> Any:
        """Returns the value of the first member."""
        return value

    def share(self, params: PyTree) -> PyTree:
        """Returns this member's share of the first member's model."""
        return params

    def collect(self, share: PyTree) -> PyTree:
        """Returns the model whose shares the members have."""
        return share

    def snapshots(self, own: list[WorkerSnapshot]) -> list[WorkerSnapshot]:
        """Returns the snapshots that all members have, with whole models."""
        return own

    def together(self, gradient_fn: GradientFn) -> GradientFn:
        """Makes the function that computes a gradient of the group."""
        return gradient_fn

    def saver(self, options: Checkpoints, identity: Mapping[str, str]) -> Checkpointer:
        """Makes what saves this worker."""
        return Checkpointer(options, self.circle, identity, together=False)

    def tidy(self, saver: Checkpointer) -> None:
        """Removes outdated checkpoints before a new one is saved."""


class Group(Alone):
    """The members of a group, as one of them sees the others.

    All members have to call each method together, and all ranks have to make
    their groups together.

    Args:
      local: the first communicator of :func:`djax.communicators.grouped`.
      across: the second one.
      like: one worker's parameters, or their shapes.

    Attributes:
      circle: a communicator of the members at this place in all groups.
    """

    def __init__(self, local: Any, across: Any, like: PyTree):
        """Makes communicators for what hosts exchange."""
        self._local = local
        self._like = like = jax.eval_shape(lambda: like)
        # One program, which puts the models of all snapshots together, too.
        self._collect = jax.jit(lambda share: collect_shares(share, like, local))
        whole, place, self._number = across.host_comm, local.rank(), across.rank()
        self._host_comm = whole.Split(self._number, place)
        circle = whole.Split(place, self._number)
        self.circle = _by_itself(across, circle)

    def any(self, *flags: Any) -> np.ndarray:
        """See :class:`Alone`."""
        everyones = self._host_comm.allgather(tuple(map(bool, flags)))
        return np.any(everyones, axis=0)

    def first(self, value: Any) -> Any:
        """See :class:`Alone`."""
        return self._host_comm.bcast(value)

    def share(self, params: PyTree) -> PyTree:
        """See :class:`Alone`."""
        local = self._local
        return jax.jit(lambda x: own_share(local.broadcast(x), local))(params)

    def collect(self, share: PyTree) -> PyTree:
        """See :class:`Alone`."""
        return self._collect(share)

    def snapshots(self, own: list[WorkerSnapshot]) -> list[WorkerSnapshot]:
        """See :class:`Alone`."""
        numbers = self._host_comm.allgather({snapshot.number for snapshot in own})
        common = set.intersection(*numbers)
        found = []
        for snapshot in (each for each in own if each.number in common):
            share = jax.tree.map(lambda x: x[0], snapshot.params)
            whole = jax.tree.map(lambda x: x[None], self.collect(share))
            found.append(snapshot._replace(params=whole))
        return found

    def together(self, gradient_fn: GradientFn) -> GradientFn:
        """See :class:`Alone`.

        The function takes a member's share of the model, and returns the member's share
        of the mean of all members' gradients.
        """

        def of_group(share, model_state, batch):
            params = collect_shares(share, self._like, self._local)
            grads, model_state, metrics = gradient_fn(params, model_state, batch)
            mean = self._local.mean(grads)
            # All members have to notice a number that is in the share of one.
            fine = all_finite(mean)
            mean = jax.tree.map(lambda x: jnp.where(fine, x, jnp.nan), mean)
            return own_share(mean, self._local), model_state, metrics

        return of_group

    def saver(self, options: Checkpoints, identity: Mapping[str, str]) -> Checkpointer:
        """See :class:`Alone`; the members of a group continue from the same step."""
        folder = pathlib.Path(options.directory) / f"group_{self._number}"
        own, error = dataclasses.replace(options, directory=folder), ""
        with_members = _by_itself(self._local, self._host_comm)
        try:
            saver = Checkpointer(own, with_members, identity)
        except CheckpointError as mistake:
            saver, error = None, str(mistake)
        errors = [*filter(None, self.circle.gather([error]))]
        if saver is None or errors:
            raise CheckpointError(errors[0])
        return saver

    def tidy(self, saver: Checkpointer) -> None:
        """See :class:`Alone`."""
        saver.agree()


def _by_itself(level: Any, host_comm: Any) -> Any:
    """Returns a level of groups as a communicator that knows of no other workers."""
    # The watchdog counts the ranks of all workers.
    return dataclasses.replace(level, host_comm=host_comm, level=None, watchdog=None)


def check_group(local: Any, across: Any, transport: str) -> None:
    """Raises ValueError unless `local` and `across` are of one call of `grouped`."""
    levels = [getattr(each, "level", None) for each in (across, local)]
    if local is None:
        if levels[0] is not None:
            raise ValueError(
                "run: the communicator is one level of groups; pass local=, the first "
                "communicator of djax.communicators.grouped, so that a group is a "
                "worker."
            )
        return
    names = [getattr(level, "name", None) for level in levels]
    wholes = [getattr(level, "whole", None) for level in levels]
    if names != ["across", "local"] or wholes[0] is not wholes[1]:
        raise ValueError(
            "run: local and communicator must be the two communicators that one call "
            f"of djax.communicators.grouped returns, got {local!r} and {across!r}."
        )
    if transport != "mpi":
        raise ValueError(
            "run: groups need transport='mpi': if a member is lost, its group cannot "
            "go on."
        )
