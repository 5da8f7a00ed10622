"""One worker a process, over MPI: the only file that needs mpi4jax."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mpi4jax
from jax._src.core import trace_state_clean  # Whether no program is being traced.
from jax.typing import ArrayLike
from mpi4py import MPI

from djax import _wire
from djax._base import PyTree, check_averageable, lockstep, wide
from djax.accounting import accounted

from . import _common, _compare


@dataclasses.dataclass(frozen=True, eq=False)
class MPICommunicator:
    """Each rank of an MPI communicator is one worker.

    Made by :func:`djax.communicators.mpi`.

    Attributes:
      comm: carries the programs' messages. Nothing else may use it: mpi4jax's and
        mpi4py's calls on one communicator overtake each other.
      host_comm: carries what the hosts exchange between programs.
      drop_probability: probability with which a message is lost.
      drop_seed: seed of the losses.
    """

    comm: MPI.Comm
    host_comm: MPI.Comm
    drop_probability: float = 0.0
    drop_seed: int = 0

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.comm.Get_size()

    @property
    def local_ranks(self) -> Sequence[int]:
        """This rank alone."""
        return [self.comm.Get_rank()]

    def rank(self) -> int:
        """See :class:`djax.Communicator`."""
        return self.comm.Get_rank()

    @accounted
    def permute(self, tree: PyTree, source: Sequence[int]) -> PyTree:
        """See :class:`djax.Communicator`."""
        _common.check_permutation(source, self.size)
        rank = self.rank()
        sender, receiver = source[rank], list(source).index(rank)
        if sender == rank:
            return tree
        return _wire.exchange(
            tree,
            lambda x: mpi4jax.sendrecv(x, x, sender, receiver, comm=self.comm),
        )

    @accounted
    def mean(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        check_averageable("mean", tree)
        sums = _wire.exchange(
            jax.tree.map(wide, tree),
            lambda x: mpi4jax.allreduce(x, MPI.SUM, comm=self.comm),
        )
        return jax.tree.map(
            lambda s, x: (s / self.size).astype(jnp.result_type(x)), sums, tree
        )

    @accounted
    def broadcast(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        return _wire.exchange(tree, lambda x: mpi4jax.bcast(x, 0, comm=self.comm))

    def agreed(self, value: ArrayLike) -> ArrayLike:
        """See :class:`djax.Communicator`."""
        return value

    def arrived(self, source: Sequence[int], key: jax.Array) -> jax.Array | bool:
        """See :class:`djax.Communicator`."""
        return _common.arrived(
            self.rank, self.drop_probability, self.drop_seed, source, key
        )

    def spmd(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """See :class:`djax.Communicator`."""
        _common.check_function(fn)

        @functools.wraps(fn)
        def this_worker(*args, **kwargs):
            _common.check_leading_axis("spmd", args, 1, kwargs)
            args, kwargs = jax.tree.map(lambda x: x[0], (args, kwargs))
            with lockstep():
                results = fn(*args, **kwargs)
            return jax.tree.map(lambda x: jnp.asarray(x)[None], results)

        return this_worker

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """See :class:`djax.Communicator`."""
        (value,) = _common.check_one_each("gather", values, 1)
        return self.host_comm.allgather(value)

    def compare_starts(self, name: str, facts: dict[str, Any], after: PyTree) -> None:
        """Raises on every rank unless all ranks start a mechanism alike.

        At once, or when the program that is being traced runs.

        Args:
          name: of the mechanism.
          facts: by name, values that can be compared, pickled and shown.
          after: arrays of the program that have to be there before.

        Raises:
          ValueError: names what differs, and on which ranks.
        """
        compare = functools.partial(_compare.compare, self.host_comm, name, facts)
        if trace_state_clean():
            compare()
        else:
            _compare.call_in_order(self.comm, compare, after)
