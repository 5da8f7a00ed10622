r"""Predicts RelaySGD from its tree: delays, learning rate and rate of convergence.

RelaySGD is analysed as gossip among :math:`n (\tau_{\max} + 1)` virtual workers: the
:math:`n` workers now and at each of the last :math:`\tau_{\max}` steps. With
:math:`y^t = (x^t, x^{t-1}, \dots, x^{t - \tau_{\max}})` and without gradients, a step
is :math:`y^{t+1} = W y^t`. The matrix :math:`W` is row-stochastic and not symmetric.
Its powers converge to :math:`\mathbf 1 \pi^\top`, where :math:`\pi` is its Perron
vector.

Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
<https://arxiv.org/abs/2110.04175>`_, 2021, Theorem II and Lemma 1.
"""

from typing import NamedTuple

import numpy as np

from .topologies import Topology
from .topologies.checks import check_tree

__all__ = [
    "RelayConstant",
    "relay_constant",
    "relay_delays",
    "relay_learning_rate_factor",
    "relay_matrix",
    "relay_perron_vector",
]
__dir__ = __all__.copy  # For dir() and completion.

# The search of the paper's figure: the powers of the matrix that it tries, and the
# number of powers without an improvement after which it gives up.
_LARGEST_POWER = 100
_PATIENCE = 10


class RelayConstant(NamedTuple):
    r"""The constant of a tree in RelaySGD's rate of convergence.

    Attributes:
      rho: :math:`\rho = m / p`, the smaller the better.
      m: a number of steps.
      p: a number in (0, 1], such that :math:`m` steps leave the share :math:`(1 -
        p)^m` of the disagreement that one step leaves, in the spectral norm.
    """

    rho: float
    m: int
    p: float


def relay_delays(tree: Topology, *, overlap: bool = False) -> np.ndarray:
    r"""The number of steps after which the model of one worker reaches another one.

    Args:
      tree: a topology without cycles.
      overlap: whether the messages of the step before are averaged: see
        :func:`djax.relay`.

    Returns:
      `int64[n, n]`: the model of worker j reaches worker i after :math:`\tau_{ij} =
      \max(\text{hops}_{ij} - 1, 0)` steps, or :math:`\text{hops}_{ij}` with overlap.

    Raises:
      TypeError: if `tree` is not a :class:`djax.Topology`.
      ValueError: if the topology has cycles.

    Examples:
      >>> from djax import theory, topologies
      >>> theory.relay_delays(topologies.chain(4))[0].tolist()
      [0, 0, 1, 2]
    """
    return _delays("relay_delays", tree, overlap)


def relay_learning_rate_factor(tree: Topology, *, overlap: bool = False) -> float:
    r"""How much larger a learning rate RelaySGD can take than all-reduce.

    An update enters the average of every worker with weight :math:`1/n`, next to older
    models that do not contain it. In the long run an update therefore moves the workers
    by :math:`1 / (1 + \bar\tau)` of its length only, with the mean delay

    .. math:: \bar\tau = \tfrac1{n^2} \textstyle\sum_{ij} \tau_{ij}.

    Multiplying the learning rate by :math:`1 + \bar\tau` makes up for that.

    Args:
      tree: a topology without cycles. The two trees of
        :func:`djax.topologies.double_binary_trees` have the same factor.
      overlap: whether the messages of the step before are averaged: see
        :func:`djax.relay`.

    Returns:
      :math:`1 + \bar\tau`.

    Raises:
      TypeError: if `tree` is not a :class:`djax.Topology`.
      ValueError: if the topology has cycles.

    Examples:
      >>> import djax
      >>> djax.relay_learning_rate_factor(djax.topologies.chain(16))
      5.375

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021, appendix, Figure 6
    """
    return 1 + float(_delays("relay_learning_rate_factor", tree, overlap).mean())


def relay_matrix(tree: Topology, *, overlap: bool = True) -> np.ndarray:
    r"""The mixing matrix of RelaySum on workers and their past.

    The average

    .. math:: x_i^{t+1} = \tfrac1n \textstyle\sum_j x_j^{t - \tau_{ij}}

    is written as :math:`y^{t+1} = W y^t`. The first block row of the matrix has
    :math:`1/n` in the column of worker j's model from :math:`\tau_{ij}` steps ago. The
    other block rows shift the past by one step.

    Args:
      tree: a topology without cycles.
      overlap: see :func:`djax.relay`; True by default, as in the paper's analysis.

    Returns:
      `float64[n (1 + max delay), n (1 + max delay)]`, row-stochastic. A worker's model
      of some steps ago has the index `delay * n + worker`.

    Raises:
      TypeError: if `tree` is not a :class:`djax.Topology`.
      ValueError: if the topology has cycles.

    Examples:
      >>> from djax import theory, topologies
      >>> print((3 * theory.relay_matrix(topologies.chain(3))).round()[:3].astype(int))
      [[1 0 0 0 1 0 0 0 1]
       [0 1 0 1 0 1 0 0 0]
       [0 0 1 0 1 0 1 0 0]]

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021, Section 4
    """
    delays, n = _delays("relay_matrix", tree, overlap), tree.size
    matrix = np.eye(n * (1 + delays.max()), k=-n)
    workers = np.arange(n)
    matrix[workers[:, None], delays * n + workers] = 1 / n
    return matrix


def relay_perron_vector(tree: Topology, *, overlap: bool = True) -> np.ndarray:
    r"""The left eigenvector :math:`\pi^\top W = \pi^\top` of :func:`relay_matrix`.

    Workers without gradients agree on a weighted mean of their present and past models,
    whose weights are

    .. math:: \pi_{kj} = \frac{\#\{i : \tau_{ij} \ge k\}}{n^2 (1 + \bar\tau)}

    for the model of worker j from k steps ago, with the mean delay :math:`\bar\tau`
    of :func:`relay_learning_rate_factor`. The present models of all workers have
    the same weight.

    Args:
      tree: a topology without cycles.
      overlap: as in :func:`relay_matrix`.

    Returns:
      `float64[n (1 + max delay)]`, which sums to 1. The weight of a model is 0 if the
      model is so old that it has reached all workers, and positive otherwise.

    Raises:
      TypeError: if `tree` is not a :class:`djax.Topology`.
      ValueError: if the topology has cycles.

    Examples:
      >>> from djax import theory, topologies
      >>> theory.relay_perron_vector(topologies.chain(2)).round(3).tolist()
      [0.333, 0.333, 0.167, 0.167]

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021, Theorem II
    """
    delays = _delays("relay_perron_vector", tree, overlap)
    waiting = [(delays >= k).sum(axis=0) for k in range(1 + delays.max())]
    weights = np.concatenate(waiting).astype(np.float64)
    return weights / weights.sum()


def relay_constant(tree: Topology) -> RelayConstant:
    r"""The constant :math:`\rho = m / p` of a tree, searched as in the paper's figure.

    With :math:`r_m = \|W^m - \mathbf 1 \pi^\top\|_2^2 \,/\,
    \|W - \mathbf 1 \pi^\top\|_2^2` and :math:`p = 1 - r_m^{1 / 2m}`, the constant is
    the smallest :math:`m / p` over those :math:`m < 100` for which :math:`r_m < 1` and
    :math:`p` is below the second largest modulus of an eigenvalue of :math:`W`. The
    search ends early once more than ten :math:`m` have brought no improvement.

    Args:
      tree: a topology of at least two workers without cycles.

    Returns:
      A :class:`RelayConstant`.

    Raises:
      TypeError: if `tree` is not a :class:`djax.Topology`.
      ValueError: if the topology has cycles, or only one worker.

    Examples:
      >>> from djax import theory, topologies
      >>> round(theory.relay_constant(topologies.chain(6)).rho, 1)
      63.1

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021, Lemma 1 and appendix, Figure 5
    """
    _delays("relay_constant", tree, overlap=True)
    if tree.size < 2:
        raise ValueError("relay_constant: one worker alone has nothing to agree on.")
    matrix = relay_matrix(tree)
    # Since W 1 = 1 and pi W = pi, the powers of the difference are W^m - 1 pi.
    difference = matrix - relay_perron_vector(tree)
    second = np.abs(np.linalg.eigvals(difference)).max()
    power, first = difference, np.linalg.norm(difference, 2)
    best, failures = None, 0
    for m in range(1, _LARGEST_POWER):
        ratio = np.linalg.norm(power, 2) / first
        p = 1 - ratio ** (1 / m)
        if 0 < p < second:
            if best is None or m / p < best.rho:
                best = RelayConstant(float(m / p), m, float(p))
            else:
                failures += 1
        if failures > _PATIENCE:
            break
        power = power @ difference
    if best is None:
        raise ValueError(f"relay_constant: no contraction of {tree!r} within 99 steps.")
    return best


def _delays(name: str, tree: Topology, overlap: bool) -> np.ndarray:
    """Returns the :func:`relay_delays`; errors name the function that was called."""
    check_tree(name, tree)
    return tree.distances if overlap else np.maximum(tree.distances - 1, 0)
