"""The communicator over MPI; this is the only file that needs mpi4jax."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import mpi4jax
import numpy as np
from jax._src.core import trace_state_clean  # Whether no program is being traced.
from jax.typing import ArrayLike
from mpi4py import MPI

from djax._arrays.checks import check_averageable, check_leading_axis
from djax._arrays.precision import promote
from djax._counting import accounted
from djax._interfaces import PyTree
from djax._tracing import describe_exchange
from djax._transformations import lockstep
from djax.transport import Watchdog, exchange

from . import _background, _common, _compare
from ._grouped import Level


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MPICommunicator:
    """Each rank of an MPI communicator is one worker.

    Made by :func:`djax.communicators.mpi`.

    Attributes:
      comm: carries the messages of compiled programs. Nothing else may use it, since
        calls of mpi4jax and of mpi4py on one communicator overtake each other.
      host_comm: carries what processes exchange between programs.
      background_comm: carries the messages of exchanges that travel while a program
        goes on.
      message_dtype: see :class:`djax.Communicator`.
      rounding_seed: see :class:`djax.Communicator`.
      watchdog: says which message this rank waits for; None if nothing does.
      level: says which ranks exchange messages, if this is one of the communicators of
        :func:`djax.communicators.grouped`. `host_comm` then has all ranks.
    """

    comm: MPI.Comm
    host_comm: MPI.Comm
    background_comm: MPI.Comm
    message_dtype: str | None = None
    rounding_seed: int | None = None
    watchdog: Watchdog | None = None
    level: Level | None = None

    drop_probability: ClassVar[float] = 0.0
    shares_device: ClassVar[bool] = False
    sharding: ClassVar[None] = None
    rows: ClassVar[int] = 1

    def __repr__(self) -> str:
        if self.level is not None:
            return f"{self.level.name}({self.size} of {self.level.whole!r})"
        options = dict(
            message_dtype=self.message_dtype, rounding_seed=self.rounding_seed
        )
        shown = [f", {name}={x!r}" for name, x in options.items() if x is not None]
        return f"mpi({self.size} ranks{''.join(shown)})"

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.comm.Get_size()

    @property
    def whole(self) -> Any:
        """See :class:`djax.Communicator`."""
        return self if self.level is None else self.level.whole

    @property
    def name(self) -> str:
        """See :class:`djax.Communicator`."""
        return "workers" if self.level is None else self.level.name

    @property
    def local_ranks(self) -> Sequence[int]:
        """The rank of this process, alone."""
        return [self.host_comm.Get_rank()]

    def hosts(self) -> list[tuple[str, int]]:
        """The host of each rank: its name, and its lowest rank.

        All ranks have to call this function.
        """
        node = self.host_comm.Split_type(MPI.COMM_TYPE_SHARED)
        lowest = node.bcast(self.host_comm.Get_rank())
        node.Free()
        return self.host_comm.allgather((MPI.Get_processor_name(), lowest))

    def at_level(self, level: Level) -> Self:
        """Returns the communicator of one of two levels of groups.

        All ranks have to call this function.

        Args:
          level: see :func:`djax.communicators.grouped`.
        """
        rank = self.host_comm.Get_rank()
        circle, place = int(level.circle_of[rank]), int(level.place_of[rank])
        comm, background = (self.host_comm.Split(circle, place) for _ in range(2))
        return dataclasses.replace(
            self, comm=comm, background_comm=background, level=level
        )

    def rank(self) -> int:
        """See :class:`djax.Communicator`."""
        return self.comm.Get_rank()

    @property
    def _comm(self) -> MPI.Comm:
        """Carries the messages of the program that is being traced."""
        return self.background_comm if _background.background.value else self.comm

    @property
    def _others(self) -> set[int]:
        """The ranks of the other workers of this communicator."""
        return set(range(self.size)) - {self.rank()}

    def _among_all(self, ranks: set[int]) -> set[int]:
        """Returns the ranks that workers of this communicator have in the run."""
        if self.level is None:
            return ranks
        circle = self.level.table[self.level.circle_of[self.host_comm.Get_rank()]]
        return {int(circle[rank]) for rank in ranks}

    def _exchange(
        self,
        verb: str,
        peers: set[int],
        tree: PyTree,
        transfer: Callable[[jax.Array], jax.Array],
        copies: int | None = None,
    ) -> PyTree:
        """Makes an exchange with `peers`, in such a way that the watchdog sees it.

        A program sends a message to this rank itself before the exchange, and receives
        it afterwards; see :mod:`djax.transport._watchdog`.
        """
        if self.watchdog is None:
            return exchange(tree, transfer, copies)
        what, peers = describe_exchange(verb), self._among_all(peers)
        if trace_state_clean():
            with self._waiting(what, peers):
                return jax.block_until_ready(exchange(tree, transfer, copies))
        if background := _background.background.value:
            what += " in the background"
        comm, me = self.watchdog.comms[background], self.host_comm.Get_rank()
        tag = self.watchdog.tag(what, peers, background)
        unseen = jnp.zeros((), jnp.int32)
        mpi4jax.send(unseen, me, tag=tag, comm=comm)
        received = exchange(tree, transfer, copies)
        mpi4jax.recv(unseen, me, tag=tag, comm=comm)
        return received

    def _waiting(self, what: str, peers: set[int]) -> AbstractContextManager[None]:
        """Lets the watchdog know that this process waits outside of programs."""
        if self.watchdog is None:
            return contextlib.nullcontext()
        return self.watchdog.waiting(what, peers)

    def in_background(
        self, function: Callable[..., PyTree], *like: PyTree
    ) -> _background.Exchange | None:
        """Prepares an exchange that travels while the program goes on.

        The program starts the exchange by its `start` and takes the result by its
        `finish`, later than that and at the same places on all ranks.

        Args:
          function: the exchange, a pure function of trees of arrays.
          *like: traced arrays like its arguments.

        Returns:
          None if the program has to make the exchange itself. This is so if two threads
          may not call MPI at the same time, and in the cases that
          :func:`_background.prepare` names.
        """
        if self.size == 1 or MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            return None
        return _background.prepare(function, *like)

    @accounted
    def permute(self, tree: PyTree, source: Sequence[int]) -> PyTree:
        """See :class:`djax.Communicator`."""
        _common.check_permutation(source, self.size)
        rank = self.rank()
        sender, receiver = source[rank], list(source).index(rank)
        if sender == rank:
            return tree
        return self._send_and_receive(tree, sender, receiver)

    def _send_and_receive(self, tree: PyTree, sender: int, receiver: int) -> PyTree:
        return self._exchange(
            "permute",
            {sender, receiver},
            tree,
            lambda x: mpi4jax.sendrecv(x, x, sender, receiver, comm=self._comm),
        )

    @accounted
    def permute_one_of(
        self, tree: PyTree, sources: Sequence[Sequence[int]], index: ArrayLike
    ) -> PyTree:
        """See :class:`djax.Communicator`."""
        # In a permutation this rank only has two partners: a sender and a receiver.
        # Permutations with the same partners share a branch.
        table, rank = _common.check_permutations(sources, self.size), self.rank()
        partners = np.stack([table[:, rank], np.argmax(table == rank, axis=1)], axis=1)
        distinct, which = _common.distinct(partners)

        def send_and_receive(pair, tree):
            if pair == (rank, rank):
                return jax.tree.map(jnp.asarray, tree)
            return self._send_and_receive(tree, *pair)

        branches = [functools.partial(send_and_receive, pair) for pair in distinct]
        return jax.lax.switch(jnp.asarray(which)[index], branches, tree)

    @accounted
    def mean(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        check_averageable("mean", tree)
        sums = self._exchange(
            "mean",
            self._others,
            jax.tree.map(promote, tree),
            lambda x: mpi4jax.allreduce(x, MPI.SUM, comm=self._comm),
        )
        return jax.tree.map(
            lambda s, x: (s / self.size).astype(jnp.result_type(x)), sums, tree
        )

    @accounted
    def broadcast(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        return self._exchange(
            "broadcast",
            {0} if self.rank() else self._others,
            tree,
            lambda x: mpi4jax.bcast(x, 0, comm=self._comm),
        )

    @accounted
    def all_gather(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        return self._exchange(
            "all_gather",
            self._others,
            tree,
            lambda x: mpi4jax.allgather(x, comm=self._comm),
            copies=self.size,
        )

    def agreed(self, value: ArrayLike) -> ArrayLike:
        """See :class:`djax.Communicator`."""
        return value

    def arrived(self, *args: Any, **kwargs: Any) -> bool:
        """See :class:`djax.Communicator`; no message is lost."""
        return True

    def spmd(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """See :class:`djax.Communicator`."""
        _common.check_function(fn)

        @functools.wraps(fn)
        def this_worker(*args, **kwargs):
            check_leading_axis("spmd", args, 1, kwargs)
            args, kwargs = jax.tree.map(lambda x: x[0], (args, kwargs))
            with lockstep():
                results = fn(*args, **kwargs)
            return jax.tree.map(lambda x: jnp.asarray(x)[None], results)

        return this_worker

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """See :class:`djax.Communicator`."""
        (value,) = _common.check_one_each("gather", values, 1)
        with self._waiting("gather", self.whole._others):
            return self.host_comm.allgather(value)

    def compare_starts(self, name: str, facts: dict[str, Any], after: PyTree) -> None:
        """See :class:`djax.Communicator`."""

        def compare():
            with self._waiting(f"init of {name}", self.whole._others):
                _compare.compare(self.host_comm, name, facts)

        if trace_state_clean():
            compare()
        else:
            _compare.call_in_order(self.comm, compare, after)
