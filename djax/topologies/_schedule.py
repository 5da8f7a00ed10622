"""Directed and time-varying communication."""

import dataclasses
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt

from ._checks import NEGLIGIBLE, TOLERANCE, check_size, describe
from ._coloring import Rounds
from ._permutations import permutations, round_weights
from ._rounding import column_weights, numbers


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    r"""Weights of `n` workers that repeat with a period: an immutable value.

    In step :math:`t`, :math:`x_i \leftarrow \sum_j a_{ij} x_j` with the matrix of
    :math:`t` modulo the period. Its columns sum to one: worker `j` splits what it has
    among the receivers, so that the sum over the workers stays. Their mean is reached
    with the help of a scalar that is treated alike (push-sum).

    Two schedules are equal when names and matrices are. They can be static arguments of
    `jax.jit`.

    Args:
      matrices: `float64[period, n, n]`, column-stochastic: `[t, i, j]` is the weight of
        the message of worker `j` at worker `i`. Numbers of lower precision, whose
        columns sum to one but for their rounding, are repaired. The schedule keeps a
        read-only copy.
      name: what `repr` calls it.

    Raises:
      ValueError: a matrix is not column-stochastic, or over the period some worker
        never hears, even indirectly, from some other, or the workers never reach a
        consensus since the period only passes around what they have.

    Examples:
      >>> from djax import topologies
      >>> schedule = topologies.one_peer_exponential(4)
      >>> schedule
      Schedule(one_peer_exponential, 4 workers, period 2, 2 rounds)
      >>> schedule.rounds
      (((3, 0, 1, 2),), ((2, 3, 0, 1),))

    References:
      Nedić and Olshevsky, `Distributed optimization over time-varying directed graphs
      <https://arxiv.org/abs/1303.2289>`_, 2013
    """

    matrices: np.ndarray
    name: str = "schedule"

    def __post_init__(self):
        matrices = column_weights(_as_numbers(self.matrices))
        _check_matrices(matrices)
        matrices.setflags(write=False)
        object.__setattr__(self, "matrices", matrices)

    @property
    def size(self) -> int:
        """The number of workers, `n`."""
        return self.matrices.shape[1]

    @property
    def period(self) -> int:
        """The number of steps after which the weights repeat."""
        return self.matrices.shape[0]

    @cached_property
    def rounds(self) -> tuple[Rounds, ...]:
        """For each step of the period, the rounds that carry its messages.

        Each round is a full permutation of `range(n)` as a source list: worker `i`
        hears `source[i]`, itself when it is silent. A step takes as many rounds as the
        busiest worker has messages to send or to receive. Where others than the
        messages are needed to fill up a permutation, `round_weights` is 0.
        """
        return tuple(permutations(matrix) for matrix in self.matrices)

    @cached_property
    def round_weights(self) -> tuple[np.ndarray, ...]:
        """For each step, `float64[rounds, n]`: the weight of what each worker hears.

        It is 0 where the worker is silent, and where the message only fills up the
        permutation. Each entry of the matrix is there exactly once, which makes

        `x[i] = matrices[t, i, i] * x[i] + sum(round_weights[t][r, i] * heard[r])`.
        """
        return tuple(
            round_weights(matrix, rounds)
            for matrix, rounds in zip(self.matrices, self.rounds, strict=True)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies are made anew: their arrays would lose their write protection.
        return type(self), (self.matrices, self.name)

    def __hash__(self) -> int:
        return hash((self.name, self.matrices.shape))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return self is other or (
            self.name == other.name and np.array_equal(self.matrices, other.matrices)
        )

    def __repr__(self) -> str:
        rounds = sum(map(len, self.rounds))
        return (
            f"Schedule({self.name}, {self.size} worker{'s' if self.size != 1 else ''}, "
            f"period {self.period}, {rounds} round{'s' if rounds != 1 else ''})"
        )


def one_peer_exponential(size: int) -> Schedule:
    r"""Each worker hears one other per step, at the distances 1, 2, 4, ... in turn.

    .. math:: x_i \leftarrow \tfrac 1 2 x_i + \tfrac 1 2 x_{(i - 2^k) \bmod n},
              \quad k = t \bmod D, \quad D = \lfloor \log_2 (n - 1) \rfloor + 1

    If the size is a power of two, a period averages exactly.

    Args:
      size: number of workers.

    Returns:
      A :class:`Schedule` of period :math:`D`, with one round per step.

    Raises:
      ValueError: the size is no positive integer.

    Examples:
      >>> from djax import topologies
      >>> topologies.one_peer_exponential(8).matrices.shape
      (3, 8, 8)

    References:
      Assran et al., `Stochastic Gradient Push for Distributed Deep Learning
      <https://arxiv.org/abs/1811.10792>`_, 2019

      Ying et al., `Exponential Graph is Provably Efficient for Decentralized Deep
      Training <https://arxiv.org/abs/2110.13363>`_, 2021
    """
    size = check_size("one_peer_exponential", size)
    own = np.eye(size)
    # One worker alone has a period of one step, in which it keeps what it has.
    steps = max(1, (size - 1).bit_length())
    matrices = [(own + np.roll(own, 2**k, axis=0)) / 2 for k in range(steps)]
    return Schedule(np.array(matrices), "one_peer_exponential")


def from_matrices(matrices: npt.ArrayLike, *, name: str = "schedule") -> Schedule:
    """Any directed communication, given by its weights.

    Args:
      matrices: `float64[period, n, n]`, column-stochastic: `[t, i, j]` is the weight of
        the message of worker `j` at worker `i` in step `t`. The diagonal is what
        workers keep.
      name: what `repr` calls it.

    Returns:
      A :class:`Schedule`.

    Raises:
      ValueError: a matrix is not column-stochastic, or over the period some worker
        never hears, even indirectly, from some other, or the workers never reach a
        consensus since the period only passes around what they have.

    Examples:
      >>> import numpy as np
      >>> from djax import topologies
      >>> one_way_ring = (np.eye(5) + np.roll(np.eye(5), 1, axis=0)) / 2
      >>> topologies.from_matrices([one_way_ring], name="one_way_ring")
      Schedule(one_way_ring, 5 workers, period 1, 1 round)
    """
    return Schedule(_as_numbers(matrices), name)


def _as_numbers(matrices: npt.ArrayLike) -> np.ndarray:
    if (array := numbers(matrices)) is None:
        raise ValueError(
            "a schedule needs weights, a float64[period, n, n], got "
            f"{describe(matrices)}; those of a topology are [topology.mixing_matrix]"
        )
    return array


def _check_matrices(matrices: np.ndarray) -> None:
    if (
        matrices.ndim != 3
        or matrices.shape[1] != matrices.shape[2]
        or not matrices.size
    ):
        raise ValueError(
            f"matrices have shape {matrices.shape}, not [period, n, n]; "
            "put a single matrix into a list"
        )
    if (wrong := ~(np.isfinite(matrices) & (matrices >= 0))).any():
        t, i, j = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"entry [{i}, {j}] of matrix {t} is {matrices[t, i, j].item()}; "
            "weights must be finite and not negative"
        )
    total = matrices.sum(axis=1)
    if (wrong := np.abs(total - 1) > TOLERANCE).any():
        t, j = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"column {j} of matrix {t} sums to {total[t, j].item()}, not to 1; divide "
            f"it by its sum, since it says how worker {j} splits what it has"
        )
    _check_strongly_connected(matrices > NEGLIGIBLE)
    _check_consensus(matrices > NEGLIGIBLE)


def _check_strongly_connected(links: np.ndarray) -> None:
    graph = _as_graph(np.any(links, axis=0))
    unreached = set(graph) - {0} - nx.descendants(graph, 0)
    mute = set(graph) - {0} - nx.ancestors(graph, 0)
    if unreached or mute:
        sender, receiver = (0, min(unreached)) if unreached else (min(mute), 0)
        raise ValueError(
            f"nothing from worker {sender} ever reaches worker {receiver}; "
            "give a positive weight to a message on the way"
        )


def _check_consensus(links: np.ndarray) -> None:
    """Accepts periods whose repetition brings the workers to a consensus.

    It does if the product of a period's matrices is primitive. Where every worker keeps
    a share in every step, it is whenever the links connect all workers.
    """
    if links.diagonal(axis1=1, axis2=2).all():
        return
    product = np.eye(links.shape[1], dtype=np.float32)
    for step in links.astype(np.float32):
        product = (step @ product > 0).astype(np.float32)
    graph = _as_graph(product)
    if not (nx.is_strongly_connected(graph) and nx.is_aperiodic(graph)):
        raise ValueError(
            "the matrices reach no consensus: whole periods pass around what workers "
            "have without mixing all of it; let every worker keep a share, as in "
            "(matrices + numpy.eye(n)) / 2"
        )


def _as_graph(links: np.ndarray) -> nx.DiGraph:
    """An edge from each sender, the column, to each of its receivers."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(links)))
    graph.add_edges_from((j, i) for i, j in np.argwhere(links).tolist())
    return graph
