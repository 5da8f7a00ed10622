"""MATCHA: important edges of a graph are used often, and the others rarely."""

import numpy as np

from ._barrier import (
    log_determinant,
    minimize,
)
from ._checks import check_share
from ._kinds import check_undirected
from ._random import (
    drawn_schedule,
    draws,
)
from ._schedule import Schedule
from ._topology import Topology

_ACCURACY = 1e-9
# Of an interval: its length falls by the factor 1e-12.
_HALVINGS = 40


def matcha(
    topology: Topology, budget: float, *, period: int = 1000, seed: int = 0
) -> Schedule:
    r"""Saves communication: each round of a topology takes place in some steps only.

    Some edges connect the workers better than others. A round :math:`j` of edges that
    matter takes place with a high probability :math:`p_j`, and other rounds are rare.
    With the Laplacian :math:`L_j` of the edges of a round,

    .. math::
       W_t = I - \alpha \sum_j a_j^t L_j, \qquad a_j^t \sim \text{Bernoulli}(p_j)
       \qquad\text{where } p \text{ maximises } \lambda_2\Bigl(\sum_j p_j L_j\Bigr)
       \text{ subject to } \sum_{j=1}^M p_j \le M b, \; 0 \le p_j \le 1

    for :math:`M` rounds and the budget :math:`b`. The weight :math:`\alpha` minimises
    :math:`\rho = \|\mathbb E[W_t^\top W_t] - J\|`: the differences between workers
    shrink by :math:`\sqrt \rho` a step in the mean square.

    A step may have no rounds at all. The weight is the best one on average, and large:
    in steps with many rounds the weight of a worker for its own value can be negative,
    and workers can move apart in such a step.

    Args:
      topology: the graph. Its weights and multiplicities do not matter.
      budget: how many rounds a step has in the mean, as a share of those of the
        topology, in (0, 1].
      period: the number of steps that are drawn, after which they repeat.
      seed: of `numpy.random.default_rng`.

    Returns:
      A symmetric :class:`Schedule`.

    Raises:
      TypeError: `topology` is none, for example a graph of networkx.
      ValueError: the budget, the period or the seed is no such number, or the steps
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
    # A source list is a permutation matrix P, and I - P the Laplacian of its pairs.
    laplacians = np.array([own - own[list(source)] for source in topology.rounds])
    probabilities = activation_probabilities(laplacians, budget)
    weight, _ = mixing_weight(laplacians, probabilities)
    active = generator.random((period, len(laplacians))) < probabilities
    matrices = own - weight * np.tensordot(active, laplacians, axes=1)
    return drawn_schedule(matrices, "matcha")


def activation_probabilities(laplacians: np.ndarray, budget: float) -> np.ndarray:
    """The probabilities of the rounds that connect the workers best.

    Args:
      laplacians: `float64[rounds, n, n]`.
      budget: the largest mean of the probabilities.

    Returns:
      `float64[rounds]`.
    """
    count, size, _ = laplacians.shape
    if budget == 1:
        return np.ones(count)
    # All Laplacians have the eigenvalue 0 in common. It is moved to where it is larger
    # than any second one, which then is the smallest.
    moved = np.full((size, size), 1 + 1 / size)

    def slacks(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What stays positive, of the probabilities and a bound on lambda_2."""
        whole = np.tensordot(x[:-1], laplacians, axes=1) + moved
        limits = np.concatenate([x[:-1], 1 - x[:-1], [budget * count - x[:-1].sum()]])
        return whole - x[-1] * np.eye(size), limits

    def barrier(x: np.ndarray) -> float:
        matrix, limits = slacks(x)
        if limits.min() <= 0:
            return np.inf
        return -log_determinant(matrix) - float(np.log(limits).sum())

    def derivatives(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        matrix, limits = slacks(x)
        inverse = np.linalg.inv(matrix)
        # By which the slacks change with each of the variables.
        changes = np.concatenate([laplacians, -np.eye(size)[np.newaxis]])
        slopes = np.zeros((len(limits), count + 1))
        slopes[:, :-1] = np.vstack([np.eye(count), -np.eye(count), -np.ones(count)])
        applied = inverse @ changes
        relative = slopes / limits[:, np.newaxis]
        gradient = -np.trace(applied, axis1=1, axis2=2) - relative.sum(axis=0)
        hessian = np.einsum("aij,bji->ab", applied, applied) + relative.T @ relative
        return gradient, hessian

    start = np.full(count + 1, 0.9 * budget)
    start[-1] = np.linalg.eigvalsh(slacks(np.append(start[:-1], 0.0))[0])[0] / 2
    cost = np.append(np.zeros(count), -1.0)
    options = {"degree": size + 2 * count + 1, "accuracy": _ACCURACY}
    return minimize(cost, barrier, derivatives, start, **options)[:-1]


def mixing_weight(
    laplacians: np.ndarray, probabilities: np.ndarray
) -> tuple[float, float]:
    r"""The weight with which the workers come together fastest in the mean square.

    It minimises the convex function

    .. math:: \rho(\alpha) = \lambda_{\max}\bigl(I - J - 2 \alpha \bar L + \alpha^2
              (\bar L^2 + 2 \tilde L)\bigr), \quad \bar L = \sum_j p_j L_j, \quad
              \tilde L = \sum_j p_j (1 - p_j) L_j

    Returns:
      The weight :math:`\alpha`, and its :math:`\rho`.
    """
    size = laplacians.shape[1]
    mean = np.tensordot(probabilities, laplacians, axes=1)
    variance = np.tensordot(probabilities * (1 - probabilities), laplacians, axes=1)
    square = mean @ mean + 2 * variance
    rest = np.eye(size) - 1 / size

    def at(weight: float) -> tuple[float, float]:
        """The function and its slope."""
        matrix = rest - 2 * weight * mean + weight**2 * square
        values, vectors = np.linalg.eigh(matrix)
        top = vectors[:, -1]
        return float(values[-1]), float(top @ (weight * square - mean) @ top)

    # With a larger weight not even the mean matrix brings the workers together.
    low, high = 0.0, 2 / np.linalg.eigvalsh(mean)[-1].item()
    for _ in range(_HALVINGS):
        weight = (low + high) / 2
        low, high = (weight, high) if at(weight)[1] < 0 else (low, weight)
    return low, at(low)[0]
