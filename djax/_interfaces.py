"""What the parts of djax are to each other: communicators and compressors."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax.typing import ArrayLike

from djax._calls import ByItsCall

PyTree = Any


class OutsideError(RuntimeError):
    """A verb was called outside of the per-worker program."""


class Communicator(Protocol):
    """How the workers of one run exchange arrays.

    The verbs up to `arrived` are called from *inside* the per-worker program, on one
    worker's arrays; `spmd` makes a program of all workers out of it; `gather` is the
    hosts' own exchange, between programs.

    Attributes:
      size: number of workers.
      name: of these workers, by which :func:`djax.communication_cost` counts.
      local_ranks: ranks of the workers that live in this process, ascending: all of
        them in simulation, one under MPI.
      rows: length of the leading axis of the arrays that programs made by `spmd` take
        and return in this process: the number of local workers, or, where arrays are
        global as on a mesh, of all workers.
      shares_device: whether all workers live on one device, so that a program may also
        compute worker by worker.
      sharding: how arrays with a leading axis of all workers lie on the devices, where
        they are global; else None.
      message_dtype: name of the dtype to which :mod:`djax.mixing` rounds floats that
        travel between neighbours; None leaves them as they are.
      rounding_seed: seed of stochastic rounding; None rounds to the nearest number.
      drop_probability: probability with which a message between neighbours is lost, 0
        if nothing is; in the long run, and the largest one where links differ.
    """

    @property
    def size(self) -> int:
        """Number of workers."""
        ...

    @property
    def name(self) -> str:
        """Of these workers."""
        ...

    @property
    def local_ranks(self) -> Sequence[int]:
        """Ranks of the workers that live in this process, ascending."""
        ...

    @property
    def rows(self) -> int:
        """Length of the leading axis of the arrays of this process."""
        ...

    @property
    def shares_device(self) -> bool:
        """Whether all workers live on one device."""
        ...

    @property
    def sharding(self) -> jax.sharding.Sharding | None:
        """How global arrays lie on the devices."""
        ...

    @property
    def message_dtype(self) -> str | None:
        """Name of the dtype in which floats travel between neighbours."""
        ...

    @property
    def rounding_seed(self) -> int | None:
        """Seed of stochastic rounding."""
        ...

    @property
    def drop_probability(self) -> float:
        """Probability with which a message between neighbours is lost."""
        ...

    def rank(self) -> jax.Array | int:
        """This worker's index: a tracer in simulation, an `int` under MPI."""
        ...

    def permute(self, tree: PyTree, source: Sequence[int]) -> PyTree:
        """Returns what worker `source[rank]` passed.

        Args:
          tree: this worker's arrays, of the same shapes and dtypes on every worker.
          source: a permutation of `range(size)`, the same on every worker; a worker
            with `source[rank] == rank` stays silent and gets its own tree back.
        """
        ...

    def permute_one_of(
        self, tree: PyTree, sources: Sequence[Sequence[int]], index: ArrayLike
    ) -> PyTree:
        """Returns what `permute(tree, sources[index])` returns.

        Graphs that change with time exchange by another permutation in each step. In
        simulation any number of permutations costs no more than one; elsewhere equal
        ones share a branch, and a rank of MPI needs one for each pair of partners.

        Args:
          tree: this worker's arrays, as in `permute`.
          sources: permutations of `range(size)`, the same on every worker.
          index: `int32[]`, the same on every worker.
        """
        ...

    def mean(self, tree: PyTree) -> PyTree:
        """Exact average over all workers (an all-reduce), in the leaves' dtypes.

        An all-reduce adds up on the way. Sums of 16-bit floats are accumulated, and
        travel, as float32, whatever the `message_dtype` is.
        """
        ...

    def broadcast(self, tree: PyTree) -> PyTree:
        """Returns worker 0's tree, bit for bit."""
        ...

    def agreed(self, value: ArrayLike) -> ArrayLike:
        """Tells JAX that `value` is equal on all workers.

        Under `vmap` the result has no worker axis, so that `lax.switch` on it runs only
        the selected branch; otherwise JAX would compute every branch and select
        afterwards.
        """
        ...

    def arrived(
        self,
        source: Sequence[Any],
        key: jax.Array,
        *,
        step: ArrayLike | None = None,
        index: ArrayLike | None = None,
    ) -> jax.Array | bool:
        """Whether the message of the round `source` came through to this worker.

        Always `True` unless messages get lost: see :func:`djax.communicators.lossy`.

        Args:
          source: the permutation, as given to `permute`; with `index` the permutations,
            as given to `permute_one_of`.
          key: a PRNG key that is new in every step; workers and rounds may share it.
          step: `int32[]`, number of steps so far, on which bursts of lost messages
            depend.
          index: `int32[]`, which permutation it is.
        """
        ...

    def spmd(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """Lifts a per-worker `fn` to arrays with a leading axis of local workers."""
        ...

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """Collects one Python object a worker, in the order of ranks, on every host.

        Args:
          values: one object for each of `local_ranks`.
        """
        ...

    def compare_starts(self, name: str, facts: dict[str, Any], after: PyTree) -> None:
        """Raises on every process unless all of them start a mechanism alike.

        At once, or when the program that is being traced runs.

        Args:
          name: of the mechanism.
          facts: by name, values that can be compared, pickled and shown.
          after: arrays of the program that have to be there before.

        Raises:
          ValueError: names what differs, and on which ranks.
        """
        ...


class _Functions(NamedTuple):
    """The fields of a :class:`Compressor`."""

    init: Callable[[PyTree], PyTree]
    compress: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    decompress: Callable[[PyTree, PyTree], PyTree]
    contraction: bool | None = None
    unbiased: bool | None = None


class Compressor(ByItsCall, _Functions):
    """A lossy code for trees of arrays: three pure functions, and what they promise.

    Each mechanism needs a code of one class (see :mod:`djax.compressors`) and diverges,
    or loses what is left out, with one of the other: a code that says of itself that it
    is not of the class in question is refused.

    Attributes:
      init: `params -> state`, what the sender remembers. Typed PRNG keys in it become
        each worker's own.
      compress: `(tree, state) -> (message, state)`; the message is a tree of the arrays
        that really travel.
      decompress: `(message, like) -> tree`, with the shapes and dtypes of `like`. It
        needs no state: whoever receives the message can read it.
      contraction: whether it is one; None if unknown, which every mechanism accepts.
      unbiased: whether its expectation is what was compressed; None if unknown.
    """
