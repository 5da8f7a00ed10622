"""The interfaces of communicators and compressors, which mechanisms are given."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax.typing import ArrayLike

from djax._calls import ByItsCall

PyTree = Any


class OutsideError(RuntimeError):
    """A communicator's method was called outside of the per-worker program."""


class Communicator(Protocol):
    """The way in which the workers of one run exchange arrays.

    An algorithm is a program of one worker. Within this program, on the arrays of one
    worker, it calls the methods `rank`, `permute`, `permute_one_of`, `mean`,
    `broadcast`, `all_gather`, `agreed` and `arrived`. The method `spmd` turns the
    program of one worker into a program of all workers. Between programs, processes
    exchange Python objects by `gather`.

    Attributes:
      size: number of workers.
      whole: the communicator of all workers of the run, if this one is a level of
        :func:`djax.communicators.grouped`; otherwise this communicator itself.
      name: a name of these workers, under which :func:`djax.communication_cost` counts
        what they send.
      local_ranks: ranks of the workers of this process, ascending: all workers in
        simulation, one under MPI.
      rows: length of the leading axis of the arrays that programs made by `spmd` take
        and return in this process. It is the number of local workers, or, if arrays are
        global as on a mesh, the number of all workers.
      shares_device: whether all workers share one device, so that a program may also
        compute one worker after another.
      sharding: the layout of global arrays on the devices; None if arrays are local.
      message_dtype: name of the dtype to which :mod:`djax.mixing` rounds floats that
        travel between neighbours; None if they are not rounded.
      rounding_seed: seed of stochastic rounding; None rounds to the nearest number.
      drop_probability: the probability with which a message between neighbours is lost,
        in the long run; if links differ, that of the worst link.
    """

    @property
    def size(self) -> int:
        """Number of workers."""

    @property
    def whole(self) -> "Communicator":
        """The communicator of all workers of the run."""

    @property
    def name(self) -> str:
        """A name of these workers."""

    @property
    def local_ranks(self) -> Sequence[int]:
        """Ranks of the workers of this process, ascending."""

    @property
    def rows(self) -> int:
        """Length of the leading axis of the arrays of this process."""

    @property
    def shares_device(self) -> bool:
        """Whether all workers share one device."""

    @property
    def sharding(self) -> jax.sharding.NamedSharding | None:
        """The layout of global arrays on the devices."""

    @property
    def message_dtype(self) -> str | None:
        """Name of the dtype in which floats travel between neighbours."""

    @property
    def rounding_seed(self) -> int | None:
        """Seed of stochastic rounding."""

    @property
    def drop_probability(self) -> float:
        """Probability with which a message between neighbours is lost."""

    def rank(self) -> jax.Array | int:
        """This worker's index: a tracer in simulation, an `int` under MPI."""

    def permute(self, tree: PyTree, source: Sequence[int]) -> PyTree:
        """Sends a tree along a permutation of the workers.

        Args:
          tree: this worker's arrays, of the same shapes and dtypes on every worker.
          source: a permutation of `range(size)`, the same on every worker. A worker
            with `source[rank] == rank` sends nothing and receives its own tree.

        Returns:
          The tree of worker `source[rank]`.
        """

    def permute_one_of(
        self, tree: PyTree, sources: Sequence[Sequence[int]], index: ArrayLike
    ) -> PyTree:
        """Sends a tree along one of several permutations, `sources[index]`.

        A graph that changes with time has another permutation in each step. In
        simulation many permutations cost no more than one. On a mesh, each different
        permutation is a branch of the program. Over MPI, each pair of a rank's partners
        (the one that it sends to, and the one that it receives from) is a branch.

        Args:
          tree: this worker's arrays, as in `permute`.
          sources: permutations of `range(size)`, the same on every worker.
          index: `int32[]`, the same on every worker.

        Returns:
          The tree of worker `sources[index][rank]`.
        """

    def mean(self, tree: PyTree) -> PyTree:
        """Averages exactly over all workers (an all-reduce), in the leaves' dtypes.

        An all-reduce adds up values while they travel. Floats of 16 bits are therefore
        added and sent as float32, and `message_dtype` has no effect.
        """

    def broadcast(self, tree: PyTree) -> PyTree:
        """Returns worker 0's tree, bit for bit."""

    def all_gather(self, tree: PyTree) -> PyTree:
        """Collects the trees of all workers on every worker, bit for bit.

        :func:`djax.communication_cost` counts it as sending the worker's own tree once,
        as it is passed to MPI, although in a ring each worker would send `size - 1`
        trees. `message_dtype` has no effect.

        Args:
          tree: this worker's arrays, of the same shapes and dtypes on every worker.

        Returns:
          A tree whose leaves have a leading axis of workers, `[size, ...]`, in the
          order of ranks.
        """

    def agreed(self, value: ArrayLike) -> ArrayLike:
        """Tells JAX that `value` is equal on all workers.

        Under `vmap` the result has no worker axis, so that `lax.switch` on it runs only
        the selected branch; otherwise JAX would compute every branch and select
        afterwards.
        """

    def arrived(
        self,
        source: Sequence[Any],
        key: jax.Array,
        *,
        step: ArrayLike | None = None,
        index: ArrayLike | None = None,
    ) -> jax.Array | bool:
        """Whether the message of a round arrives at this worker.

        It always does, unless the communicator loses messages: see
        :func:`djax.communicators.lossy`.

        Args:
          source: the permutation of the round, as passed to `permute`; with `index` the
            permutations, as passed to `permute_one_of`.
          key: a PRNG key that is new in every step. Workers and rounds may share it.
          step: `int32[]`, the number of steps so far; bursts of lost messages depend on
            it.
          index: `int32[]`, the index of the permutation, as passed to
            `permute_one_of`.
        """

    def spmd(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """Turns a program of one worker into a program of all workers.

        Args:
          fn: a function of one worker's trees of arrays.

        Returns:
          A function of trees whose arrays have a leading axis of local workers.
        """

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """Collects one Python object a worker, in the order of ranks, on every host.

        Args:
          values: one object for each of `local_ranks`.
        """

    def compare_starts(self, name: str, facts: dict[str, Any], after: PyTree) -> None:
        """Raises on every process if processes start a mechanism differently.

        If a program is being traced, the comparison is made when the program runs.

        Args:
          name: the name of the mechanism.
          facts: what is compared, by name: values that can be pickled and shown.
          after: arrays of the program that are computed before the comparison.

        Raises:
          ValueError: if facts differ; the error names them, and the ranks.
        """


class _Functions(NamedTuple):
    """The fields of a :class:`Compressor`."""

    init: Callable[[PyTree], PyTree]
    compress: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    decompress: Callable[[PyTree, PyTree], PyTree]
    contraction: bool | None = None
    unbiased: bool | None = None


class Compressor(ByItsCall, _Functions):
    """A lossy code for trees of arrays: three pure functions and two properties.

    A mechanism that compresses its messages needs either a contraction or an unbiased
    code (see :mod:`djax.compressors`). With a code of the wrong class it diverges, or
    loses what the code leaves out. A mechanism therefore refuses a code that is known
    to be of the wrong class.

    Attributes:
      init: `params -> state`, the state of the sender. Typed PRNG keys in the state are
        made different on each worker.
      compress: `(tree, state) -> (message, state)`. The message is a tree of exactly
        those arrays that are sent.
      decompress: `(message, like) -> tree`, with the shapes and dtypes of `like`. It
        needs no state, so that any receiver can read the message.
      contraction: whether the code is a contraction; None if that is not known, which
        all mechanisms accept.
      unbiased: whether the expectation of the decompressed tree is the tree that was
        compressed; None if that is not known, which all mechanisms accept.
    """
