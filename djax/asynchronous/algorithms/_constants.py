r"""How often neighbours average, and which constants of A²CiD² follow from it.

The momentum of A²CiD² has to fit how fast averaging alone spreads information over the
graph. Neighbours :math:`i, j` average at the times of a Poisson process of rate
:math:`\lambda_{ij}`. The unit of time is the time in which a worker computes one
gradient. In expectation over these random times, the differences between the models
decay at rates that are proportional to the eigenvalues of the graph's Laplacian

.. math:: \mathcal L = \textstyle\sum_{\{i,j\} \in E} \lambda_{ij}
                       (e_i - e_j)(e_i - e_j)^\top.

Two numbers tell how well the graph is connected:

.. math::
   \chi_1 = \frac{1}{\lambda_2(\mathcal L)}, \qquad
   \chi_2 = \tfrac12 \max_{\{i,j\} \in E} (e_i - e_j)^\top \mathcal L^+ (e_i - e_j),

the inverse of the algebraic connectivity, and half of the largest effective resistance
of an edge. Always :math:`\chi_2 \le \chi_1`.

Nabli, Belilovsky and Oyallon, `A²CiD²: Accelerating Asynchronous Communication in
Decentralized Deep Learning <https://arxiv.org/abs/2306.08289>`_, 2023, Proposition 3.6.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from djax import _networkx as nx
from djax.topologies import Topology
from djax.topologies.checks import check_undirected


class AcidConstants(NamedTuple):
    r"""The constants of A²CiD² on one graph, for :func:`djax.acid`.

    Attributes:
      chi1: :math:`\chi_1`, in units of time.
      chi2: :math:`\chi_2`, in units of time.
      eta: :math:`\eta = 1 / (2 \sqrt{\chi_1 \chi_2})`, the rate at which :math:`x` and
        :math:`\tilde x` mix, per unit of time.
      alpha: :math:`\alpha = \frac12`, the step of :math:`x` in an averaging, which
        replaces two models by their mean.
      alpha_tilde: :math:`\tilde\alpha = \frac12 \sqrt{\chi_1 / \chi_2}`, the step of
        :math:`\tilde x` in an averaging. The larger it is, the more the momentum
        accelerates consensus.
    """

    chi1: float
    chi2: float
    eta: float
    alpha: float
    alpha_tilde: float


class Asked:
    """The rates of averagings for which constants or events were made.

    Constants that do not fit the events are found by comparing two such objects with
    `==`. Rates that differ only by rounding are equal.

    Args:
      topology: which workers are neighbours.
      rate: the averagings of a worker, or of each pair, as in :func:`edge_rates`.

    Raises:
      TypeError: if :func:`edge_rates` raises it.
      ValueError: if :func:`edge_rates` raises it.
    """

    def __init__(self, topology: Topology, rate: ArrayLike):
        """Computes the rates of all pairs."""
        self.rates = edge_rates(topology, rate)
        mean = self.rates.sum(1).mean()
        self._name = f"{topology!r} with {mean:.6g} averagings of a worker per gradient"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Asked)
            and self.rates.shape == other.rates.shape
            and np.allclose(self.rates, other.rates, rtol=1e-6, atol=0)
        )

    def __hash__(self) -> int:
        return hash(self.rates.shape)

    def __str__(self) -> str:
        return self._name


class _MadeConstants(AcidConstants):
    """Constants that remember the rates for which they were made.

    The rates are an attribute of this subclass in place of a sixth field. So constants
    remain a tuple of five numbers, and constants that a user makes or changes by hand
    have no rates.

    Attributes:
      asked: the rates.
    """

    asked: Asked

    def __repr__(self) -> str:
        return repr(AcidConstants(*self))


def edge_rates(topology: Topology, rate: ArrayLike = 1.0) -> np.ndarray:
    r"""Computes how often each pair of neighbours averages.

    Args:
      topology: which workers are neighbours. Its mixing weights play no role.
      rate: averagings of a worker per unit of time, in which it computes one gradient.
        A pair then averages at the rate

        .. math:: \lambda_{ij} = \text{rate} \cdot m_{ij} / \max(\deg_i, \deg_j)

        where :math:`m_{ij}` is the multiplicity of the edge, and a degree is the sum of
        the multiplicities of a worker's edges. On an irregular graph, workers of
        smaller degree average less often. Alternatively, the :math:`\lambda_{ij}`
        themselves are given, as a symmetric `float[n, n]` that is zero where the graph
        has no edge.

    Returns:
      `float64[n, n]`, symmetric, zero where there is no edge.

    Raises:
      TypeError: if `topology` is no Topology but a Schedule, for example, or `rate` is
        no number.
      ValueError: if a rate is negative or not finite, the matrix is not symmetric, or
        it has an entry where the graph has no edge.

    Examples:
      >>> import djax
      >>> djax.asynchronous.edge_rates(djax.topologies.star(4))[0].round(3).tolist()
      [0.0, 0.333, 0.333, 0.333]
    """
    check_undirected("edge_rates", topology)
    try:
        given = np.asarray(rate)
    except (TypeError, ValueError):  # Rows of different lengths, for example.
        given = np.asarray(None)
    if given.dtype.kind not in "iuf":
        raise TypeError(f"edge_rates: rate must be a number or a matrix, got {rate!r}.")
    given = given.astype(np.float64)
    adjacency = nx.to_numpy_array(topology.graph, weight="multiplicity")
    if given.ndim == 0:
        if not 0 <= given < np.inf:
            raise ValueError(
                "edge_rates: rate must be a finite number of averagings per worker and "
                f"unit of time, at least 0; got {given}."
            )
        degrees = adjacency.sum(1)
        return given * adjacency / np.maximum(np.maximum.outer(degrees, degrees), 1)
    _check_rates(given, adjacency)
    return (given + given.T) / 2


def acid_constants(topology: Topology, rate: ArrayLike = 1.0) -> AcidConstants:
    r"""Computes the constants of A²CiD² on a graph.

    Without the momentum, consensus takes a time proportional to :math:`\chi_1`. With
    the momentum it takes :math:`\sqrt{\chi_1 \chi_2}`, which on a ring is proportional
    to the number of workers instead of its square. On the complete graph there is
    nothing to gain, since :math:`\chi_1 = \chi_2` and :math:`\tilde\alpha = \frac12`.
    If the rate is multiplied by `c`, then :math:`\eta` is multiplied by `c`, and
    :math:`\tilde\alpha` does not change.

    Args:
      topology: which workers are neighbours. Its mixing weights play no role.
      rate: averagings of a worker per unit of time, in which it computes one gradient,
        or those of each pair, `float[n, n]`, as in
        :func:`djax.asynchronous.edge_rates`.

    Returns:
      The constants. They remember the graph and the rate, so that
      :func:`djax.asynchronous.simulate` can refuse events of another graph or rate.
      Constants that are made by hand, or by `_replace`, are not checked.

    Raises:
      TypeError: if `topology` is no Topology but a Schedule, for example, or `rate` is
        no number.
      ValueError: if :func:`djax.asynchronous.edge_rates` refuses the rates, or they do
        not connect all workers.

    Examples:
      >>> import djax
      >>> constants = djax.acid_constants(djax.topologies.ring(16))
      >>> print(f"{constants.eta:.4f} {constants.alpha_tilde:.4f}")
      0.1425 1.8717

    References:
      Nabli et al., `A²CiD²: Accelerating Asynchronous Communication in Decentralized
      Deep Learning <https://arxiv.org/abs/2306.08289>`_, 2023, Proposition 3.6
    """
    check_undirected("acid_constants", topology)
    asked = Asked(topology, rate)
    rates = asked.rates
    _check_connected(rates)
    laplacian = np.diag(rates.sum(1)) - rates
    chi1 = 1 / np.linalg.eigvalsh(laplacian)[1]
    inverse = np.linalg.pinv(laplacian, hermitian=True)
    i, j = np.nonzero(rates)
    resistances = inverse[i, i] + inverse[j, j] - 2 * inverse[i, j]
    chi2 = resistances.max() / 2
    constants = _MadeConstants(
        chi1=float(chi1),
        chi2=float(chi2),
        eta=float(1 / (2 * np.sqrt(chi1 * chi2))),
        alpha=0.5,
        alpha_tilde=float(np.sqrt(chi1 / chi2) / 2),
    )
    constants.asked = asked
    return constants


def _check_rates(rates: np.ndarray, adjacency: np.ndarray) -> None:
    if rates.shape != adjacency.shape:
        raise ValueError(
            "edge_rates: rate must be a number or a matrix of shape "
            f"{adjacency.shape}, got shape {rates.shape}."
        )
    mistakes = {
        "is negative or not finite": ~((rates >= 0) & (rates < np.inf)),
        "has no edge in the topology": (rates > 0) & (adjacency == 0),
        "differs from its transpose": ~np.isclose(rates, rates.T, rtol=1e-12, atol=0),
    }
    for mistake, where in mistakes.items():
        if where.any():
            i, j = map(int, np.argwhere(where)[0])
            raise ValueError(f"edge_rates: rate[{i}, {j}] = {rates[i, j]} {mistake}.")


def _check_connected(rates: np.ndarray) -> None:
    if len(rates) < 2:
        raise ValueError("acid_constants needs at least two workers.")
    reached = nx.node_connected_component(nx.from_numpy_array(rates), 0)
    if missing := sorted(set(range(len(rates))) - reached):
        raise ValueError(
            f"acid_constants: no averagings connect worker {missing[0]} with worker 0; "
            "give a positive rate to a path between them."
        )
