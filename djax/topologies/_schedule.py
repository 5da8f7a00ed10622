"""Graphs that are directed or change with time, as a period of weight matrices."""

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from djax._values import counted, describe, read_only

from . import _sparse
from ._plot import plot_steps
from ._rounding import column_weights, numbers
from ._rounds import Rounds, round_weights, rounds_of
from ._schedule_checks import check_shape, check_steps, contraction
from ._steps import Steps, from_dense, from_sparse
from ._topology_checks import TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from scipy.sparse import csr_array

# A spectral gap that takes more multiplications than this takes seconds, which is too
# long for a `repr`.
_LARGEST_REPR_WITH_GAP = 2**28


def _dense(schedule: "Schedule") -> np.ndarray:
    return read_only(np.array([*schedule._steps.dense()]))


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class Schedule:
    r"""Weights of `n` workers in each step of a period: an immutable value.

    In step :math:`t`, :math:`x_i \leftarrow \sum_j a_{ij} x_j`, with the matrix
    `matrices[t % period]`. The columns of the matrix sum to one: worker `j` splits what
    it has among the receivers, so that the sum over the workers stays. If the rows sum
    to one as well, the workers come closer and closer to their mean. Otherwise push-sum
    finds the mean: it sends a scalar along with each model, and divides by the scalar.

    Two schedules are equal when their names and matrices are. They can be static
    arguments of `jax.jit`.

    A schedule keeps the weights that are not zero. The attribute `matrices` is made
    when it is first asked for, and takes `8 period n**2` bytes.

    Args:
      matrices: `float64[period, n, n]`, column-stochastic. The entry `[t, i, j]` is the
        weight of the message of worker `j` at worker `i`. Weights of lower precision,
        whose columns sum to one up to rounding, are converted to float64 and made
        exact. Where the rows of a matrix sum to one as well, weights may be negative.
        They may also be a list with matrices of scipy.sparse. The attribute is a
        read-only copy, and :meth:`weights_at` returns sparse matrices.
      name: the name that `repr` shows.

    Raises:
      ValueError: a matrix is not column-stochastic; or no path of messages ever leads
        from some worker to some other worker; or the workers never reach a consensus,
        since in a period they only pass around what they have.

    Examples:
      >>> from djax import topologies
      >>> schedule = topologies.one_peer_exponential(4)
      >>> schedule
      Schedule(one_peer_exponential, 4 workers, period 2, 2 rounds, spectral gap 1)
      >>> schedule.rounds
      (((3, 0, 1, 2),), ((2, 3, 0, 1),))

    References:
      Nedić and Olshevsky, `Distributed optimization over time-varying directed graphs
      <https://arxiv.org/abs/1303.2289>`_, 2013
    """

    matrices: np.ndarray = cached_property(_dense)  # pyrefly: ignore
    name: str = "schedule"

    def __init__(self, matrices: Any, name: str = "schedule") -> None:
        """See :class:`Schedule`."""
        steps = column_weights(_as_steps(matrices))
        check_steps(steps)
        self._steps: Steps
        object.__setattr__(self, "_steps", steps)
        object.__setattr__(self, "name", name)

    @property
    def size(self) -> int:
        """The number of workers, `n`."""
        return self._steps.shape[1]

    @property
    def period(self) -> int:
        """The number of steps after which the weights repeat."""
        return self._steps.shape[0]

    @cached_property
    def rounds(self) -> tuple[Rounds, ...]:
        """For each step of the period, the rounds that carry its messages.

        Each round is a full permutation of `range(n)` as a source list: worker `i`
        hears `source[i]`, or itself if it is silent. Steps with equal matrices share
        their rounds, and a step without messages has none.

        The rounds of a symmetric matrix are an edge colouring, as those of a
        :class:`Topology`, so that two partners hear each other in the same round. Other
        matrices take as many rounds as the busiest worker has messages to send or to
        receive. Where a permutation contains a pair of workers only to be complete,
        `round_weights` is 0.
        """
        return tuple(rounds for rounds, _ in self._exchanges)

    @cached_property
    def round_weights(self) -> tuple[np.ndarray, ...]:
        """For each step, `float64[rounds, n]`: the weight of what each worker hears.

        The weight is 0 where the worker is silent, and where the message only completes
        the permutation. Since each entry of the matrix occurs exactly once, step `t` is

        `x[i] = matrices[t, i, i] * x[i] + sum(round_weights[t][r, i] * heard[r])`.
        """
        return tuple(weights for _, weights in self._exchanges)

    def weights_at(self, t: int) -> "csr_array":
        """The matrix of step `t`, which may exceed the period, as a sparse matrix."""
        return self._weights[t % self.period]

    def rounds_at(self, t: int) -> Rounds:
        """The rounds of step `t`, which may exceed the period: see `rounds`."""
        return self.rounds[t % self.period]

    def round_weights_at(self, t: int) -> np.ndarray:
        """The weights of step `t`, which may exceed the period: see `round_weights`."""
        return self.round_weights[t % self.period]

    @cached_property
    def symmetric(self) -> bool:
        """Whether every matrix is symmetric: workers exchange messages in pairs."""
        difference = self._steps.values - self._steps.mirrored()
        return bool(np.abs(difference).max() <= TOLERANCE)

    @cached_property
    def doubly_stochastic(self) -> bool:
        """Whether the rows of every matrix sum to one, as all columns do."""
        return bool(np.abs(self._steps.row_sums() - 1).max() <= TOLERANCE)

    @cached_property
    def spectral_gap(self) -> float:
        r"""The share of the differences that a step removes, on average over a period.

        The gap is 1 for one worker, and where a period averages exactly, although its
        single steps do not. Otherwise it is :math:`1 - |\lambda|^{1/P}`, where
        :math:`\lambda` is the second largest eigenvalue of :math:`W_{P-1} \cdots W_0`,
        the product of the :math:`P` matrices of a period.

        The product is a dense matrix, which takes seconds for 1,024 workers and a
        period of 100, and minutes for 4,096 workers. The `repr` of a large schedule
        therefore leaves the gap out.
        """
        return 1.0 - contraction(self._steps.dense())

    def plot(self, axes: "Sequence[Axes] | None" = None) -> np.ndarray:
        """Draws the period with matplotlib as a strip of small graphs, one a step.

        Lines are the exchanges of symmetric steps. Arrows are the messages of directed
        steps.

        Args:
          axes: where to draw the first steps, one after the other; by default new axes,
            for at most 12 steps.

        Returns:
          The array of the axes.
        """
        return plot_steps(self.matrices, axes)

    @cached_property
    def _weights(self) -> "tuple[csr_array, ...]":
        return tuple(map(_sparse.read_only, self._steps.matrices()))

    @cached_property
    def _exchanges(self) -> tuple[tuple[Rounds, np.ndarray], ...]:
        """The rounds of each step and their weights; equal matrices share them."""
        found: dict[tuple[bytes, ...], tuple[Rounds, np.ndarray]] = {}
        keys = []
        for matrix in self._weights:
            parts = matrix.indptr, matrix.indices, matrix.data
            keys.append(key := tuple(part.tobytes() for part in parts))
            if key not in found:
                rounds = rounds_of(matrix)
                found[key] = rounds, round_weights(matrix, rounds)
        return tuple(found[key] for key in keys)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles are made by a new call, so that arrays stay read-only.
        return type(self), (self._steps, self.name)

    def __hash__(self) -> int:
        return hash((self.name, self._steps.shape))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return self is other or (
            self.name == other.name
            and self._steps.shape == other._steps.shape
            and np.array_equal(self._steps.places, other._steps.places)
            and np.array_equal(self._steps.values, other._steps.values)
        )

    def __repr__(self) -> str:
        parts = [
            self.name,
            counted(self.size, "worker"),
            f"period {self.period}",
            counted(sum(map(len, self.rounds)), "round"),
        ]
        if self.period * self.size**3 <= _LARGEST_REPR_WITH_GAP:
            parts.append(f"spectral gap {self.spectral_gap:.3g}")
        return f"Schedule({', '.join(parts)})"


def from_matrices(matrices: npt.ArrayLike, *, name: str = "schedule") -> Schedule:
    """Makes a schedule of any weights, directed or changing with time.

    Args:
      matrices: `float64[period, n, n]`, column-stochastic, or a list of matrices, also
        of scipy.sparse. The entry `[t, i, j]` is the weight of the message of worker
        `j` at worker `i` in step `t`. The diagonal is the share that workers keep.
      name: the name that `repr` shows.

    Returns:
      A :class:`Schedule`.

    Raises:
      ValueError: the matrices cannot be those of a schedule: see :class:`Schedule`.

    Examples:
      >>> import numpy as np
      >>> from djax import topologies
      >>> one_way_ring = (np.eye(5) + np.roll(np.eye(5), 1, axis=0)) / 2
      >>> topologies.from_matrices([one_way_ring], name="one_way_ring")
      Schedule(one_way_ring, 5 workers, period 1, 1 round, spectral gap 0.191)
    """
    return Schedule(matrices, name)


def _as_steps(matrices: Any) -> Steps:
    if isinstance(matrices, Steps):
        return matrices
    if isinstance(matrices, (list, tuple)):
        shapes = [np.shape(matrix) for matrix in matrices]
        for t, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise ValueError(
                    "the matrices of a schedule need one shape [n, n], since the "
                    "workers stay the same over its period, but matrix 0 has shape "
                    f"{shapes[0]}, and matrix {t} has {shape}"
                )
        if any(map(_sparse.is_sparse, matrices)):
            check_shape((len(matrices), *shapes[0]))
            known = [numbers(matrix) for matrix in matrices]
            if all(matrix is not None for matrix in known):
                return from_sparse(known)
    if (array := numbers(matrices)) is None:
        raise ValueError(
            "a schedule needs weights, a float64[period, n, n], got "
            f"{describe(matrices)}; those of a topology are [topology.mixing_matrix]"
        )
    check_shape(array.shape)
    return from_dense(array)
