"""MATCHA: important edges of a graph are used often, and the others rarely."""

import numpy as np

from djax._values import check_share

from ._random import drawn_schedule, draws
from ._schedule import Schedule
from ._semidefinite import activation_probabilities
from ._steps import from_dense
from ._topology import Topology
from .checks import check_undirected

# Number of times that the interval which contains the best weight is halved. Together
# they shorten the interval by a factor of 1e-12.
_HALVINGS = 40


def matcha(
    topology: Topology, budget: float, *, period: int = 1000, seed: int = 0
) -> Schedule:
    r"""Saves communication: each round of a topology takes place in some steps only.

    Some edges matter more than others for how fast the workers come together. Round
    :math:`j` of a topology takes place with a probability :math:`p_j`, which is high if
    its edges matter. With the Laplacian :math:`L_j` of the edges of a round,

    .. math::
       W_t = I - \alpha \sum_j a_j^t L_j, \qquad a_j^t \sim \text{Bernoulli}(p_j)
       \qquad\text{where } p \text{ maximises } \lambda_2\Bigl(\sum_j p_j L_j\Bigr)
       \text{ subject to } \sum_{j=1}^M p_j \le M b, \; 0 \le p_j \le 1

    for :math:`M` rounds and the budget :math:`b`. The weight :math:`\alpha` minimises
    :math:`\rho = \|\mathbb E[W_t^\top W_t] - J\|`, where all entries of :math:`J` are
    :math:`1 / n`. The differences between workers shrink by :math:`\sqrt \rho` a step
    in the mean square.

    A step may have no rounds at all. The weight is the best one on average, which is
    too large for some steps: in steps with many rounds, the weight of a worker for its
    own value can be negative, and workers can move apart.

    Args:
      topology: the graph. Its weights and multiplicities do not matter.
      budget: the mean number of rounds in a step, as a share of the rounds of the
        topology, in (0, 1].
      period: the number of steps that are drawn, after which they repeat.
      seed: seed of `numpy.random.default_rng`.

    Returns:
      A symmetric :class:`Schedule`.

    Raises:
      TypeError: `topology` is not a topology, but for example a graph of networkx.
      ValueError: the budget, the period or the seed is out of its range, or the steps
        that were drawn do not bring the workers together.

    Examples:
      >>> from djax import topologies
      >>> topologies.matcha(topologies.ring(6), budget=0.5)
      Schedule(matcha, 6 workers, period 1000, 1007 rounds, spectral gap 0.327)

    References:
      Wang, Sahu, Yang, Joshi and Kar, `MATCHA: Speeding Up Decentralized SGD via
      Matching Decomposition Sampling <https://arxiv.org/abs/1905.09435>`_, 2019
    """
    check_undirected("matcha", topology)
    budget = check_share(budget, "matcha: budget")
    period, generator = draws("matcha", period, seed)
    if topology.size == 1:
        return Schedule(np.ones((1, 1, 1)), "matcha")
    own = np.eye(topology.size)
    # The source list of a round is a permutation P, and I - P is its Laplacian.
    laplacians = np.array([own - own[list(source)] for source in topology.rounds])
    probabilities = activation_probabilities(laplacians, budget)
    weight, _ = mixing_weight(laplacians, probabilities)
    active = generator.random((period, len(laplacians))) < probabilities
    matrices = own - weight * np.tensordot(active, laplacians, axes=1)
    return drawn_schedule(from_dense(matrices), "matcha")


def mixing_weight(
    laplacians: np.ndarray, probabilities: np.ndarray
) -> tuple[float, float]:
    r"""The weight with which the workers come together fastest in the mean square.

    It minimises a convex function, in which all entries of :math:`J` are :math:`1 / n`:

    .. math:: \rho(\alpha) = \lambda_{\max}\bigl(I - J - 2 \alpha \bar L + \alpha^2
              (\bar L^2 + 2 \tilde L)\bigr), \quad \bar L = \sum_j p_j L_j, \quad
              \tilde L = \sum_j p_j (1 - p_j) L_j

    Args:
      laplacians: `float64[rounds, n, n]`, the Laplacian of the edges of each round.
      probabilities: `float64[rounds]`, with which the rounds take place.

    Returns:
      The weight :math:`\alpha`, and :math:`\rho(\alpha)`.
    """
    size = laplacians.shape[1]
    mean = np.tensordot(probabilities, laplacians, axes=1)
    variance = np.tensordot(probabilities * (1 - probabilities), laplacians, axes=1)
    square = mean @ mean + 2 * variance
    rest = np.eye(size) - 1 / size

    def at(weight: float) -> tuple[float, float]:
        """The value and the slope of the function."""
        matrix = rest - 2 * weight * mean + weight**2 * square
        values, vectors = np.linalg.eigh(matrix)
        top = vectors[:, -1]
        return float(values[-1]), float(top @ (weight * square - mean) @ top)

    # With a larger weight, not even the mean of the matrices brings workers together.
    low, high = 0.0, 2 / np.linalg.eigvalsh(mean)[-1].item()
    for _ in range(_HALVINGS):
        weight = (low + high) / 2
        low, high = (weight, high) if at(weight)[1] < 0 else (low, weight)
    return low, at(low)[0]
