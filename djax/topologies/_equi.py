"""EquiTopo: random shifts, whose rate of consensus does not depend on the size."""

import math

import networkx as nx
import numpy as np

from ._checks import (
    check_integer,
    check_share,
    check_size,
)
from ._random import (
    drawn_schedule,
    draws,
)
from ._schedule import Schedule
from ._topology import Topology


def equi_static(
    size: int,
    *,
    degree: int | None = None,
    accuracy: float | None = None,
    probability: float = 0.5,
    directed: bool = False,
    seed: int = 0,
) -> Topology | Schedule:
    r"""Few random neighbours, with a spectral gap that hardly depends on the size.

    The spectral gap of a ring falls with the square of the number of workers. Random
    neighbours need only a number that grows with its logarithm for a gap of any size.
    Of the shifts :math:`1, \dots, n - 1` on a ring, :math:`M` are drawn, with
    replacement. With the permutation matrix :math:`P_a` that has worker :math:`i` hear
    worker :math:`i + a \bmod n`,

    .. math:: W = \frac 1 M \sum_{m=1}^M \Bigl(\frac{n - 1}{n} P_{a_m} + \frac 1 n I
              \Bigr) \quad\text{if directed, and else}\quad \frac{W + W^\top} 2

    Args:
      size: number of workers.
      degree: the number of shifts, :math:`M`.
      accuracy: in place of the degree: by which factor :math:`\varepsilon` a step has
        to bring the workers together. The degree is
        :math:`M = \lfloor 8 \ln(2 n / p) / (3 \varepsilon^2) \rfloor`.
      probability: :math:`p`, that the accuracy is missed.
      directed: whether worker :math:`i` hears :math:`i + a` without being heard by it
        (D-EquiStatic), or both hear each other (U-EquiStatic).
      seed: of `numpy.random.RandomState`.

    Returns:
      A :class:`Topology`, or a doubly stochastic :class:`Schedule` of period 1.

    Raises:
      ValueError: an argument is no such number, none or both of `degree` and `accuracy`
        are given, or the shifts that were drawn do not connect all workers.

    Examples:
      >>> from djax import topologies
      >>> topologies.equi_static(16, degree=4)
      Topology(equi_static, 16 workers, 64 edges, 8 rounds, spectral gap 0.591)
      >>> topologies.equi_static(16, degree=4, directed=True)
      Schedule(equi_static, 16 workers, period 1, 4 rounds, spectral gap 0.333)

    References:
      Song et al., `Communication-Efficient Topologies for Decentralized Learning with
      O(1) Consensus Rate <https://arxiv.org/abs/2210.07881>`_, 2022
    """
    size = check_size("equi_static", size)
    if degree is None:
        degree = _degree_of_accuracy(size, accuracy, probability)
    elif accuracy is not None:
        raise ValueError("equi_static: give the degree or the accuracy, not both")
    shifts = basis("equi_static", size, degree, seed)
    if math.gcd(size, *shifts.tolist()) > 1:
        raise ValueError(
            f"equi_static: the shifts that were drawn, {shifts.tolist()}, do not "
            f"connect all of the {size} workers; choose a larger degree or another seed"
        )
    matrix = np.mean([_shift(size, a) for a in shifts], axis=0)
    if directed:
        return Schedule(matrix[np.newaxis], "equi_static")
    matrix = (matrix + matrix.T) / 2
    graph = nx.empty_graph(size)
    graph.add_edges_from(np.argwhere(np.triu(matrix, k=1)).tolist())
    return Topology(graph, matrix, "equi_static")


def equi_dyn(
    size: int,
    *,
    degree: int | None = None,
    eta: float = 0.5,
    directed: bool = False,
    period: int = 64,
    seed: int = 0,
) -> Schedule:
    r"""One random partner a step, with a rate of consensus that size does not change.

    For each step a shift :math:`a` on a ring is drawn. If directed (OD-EquiDyn), worker
    :math:`i` hears worker :math:`i + a \bmod n`. Otherwise (OU-EquiDyn) a walk along
    the ring, from a worker that is drawn as well, pairs each worker :math:`i` that is
    still free with worker :math:`i + a`, if that is free. With the permutation matrix
    :math:`P` of whom a worker hears, itself if it has no partner,

    .. math:: W = (1 - \eta) I + \eta \Bigl(\frac{n - 1}{n} P + \frac 1 n I \Bigr)

    Args:
      size: number of workers.
      degree: the number of shifts that are drawn beforehand, with replacement, for the
        steps to choose from. By default they choose from all shifts.
      eta: :math:`\eta`, in (0, 1], how much a step averages.
      directed: whether messages are directed.
      period: the number of steps that are drawn, after which they repeat.
      seed: of `numpy.random.default_rng`, and for the `degree` shifts of
        `numpy.random.RandomState`.

    Returns:
      A doubly stochastic :class:`Schedule` with one round per step, symmetric unless it
      is directed.

    Raises:
      ValueError: an argument is no such number, or the steps that were drawn do not
        connect all workers.

    Examples:
      >>> from djax import topologies
      >>> topologies.equi_dyn(16)
      Schedule(equi_dyn, 16 workers, period 64, 64 rounds, spectral gap 0.359)
      >>> topologies.equi_dyn(16, directed=True)
      Schedule(equi_dyn, 16 workers, period 64, 64 rounds, spectral gap 0.416)

    References:
      Song et al., `Communication-Efficient Topologies for Decentralized Learning with
      O(1) Consensus Rate <https://arxiv.org/abs/2210.07881>`_, 2022
    """
    size = check_size("equi_dyn", size)
    eta = check_share(eta, "equi_dyn: eta")
    period, generator = draws("equi_dyn", period, seed)
    shifts = _all_shifts(size)
    if degree is not None:
        shifts = basis("equi_dyn", size, degree, seed)
    matrices = []
    for _ in range(period):
        shift = int(generator.choice(shifts))
        if directed:
            step = _shift(size, shift)
        else:
            paired = pairs(size, shift, start=int(generator.integers(size)))
            step = np.eye(size) / size + (size - 1) / size * paired
        matrices.append((1 - eta) * np.eye(size) + eta * step)
    return drawn_schedule(np.array(matrices), "equi_dyn")


def _degree_of_accuracy(size: int, accuracy: float | None, probability: float) -> int:
    """The number of shifts of the paper's Theorem 1."""
    if accuracy is None:
        raise ValueError(
            "equi_static: give the degree, as in equi_static(16, degree=4), or the "
            "accuracy of a step"
        )
    accuracy = check_share(accuracy, "equi_static: accuracy")
    probability = check_share(probability, "equi_static: probability")
    return int(8 * math.log(2 * size / probability) / (3 * accuracy**2))


def _all_shifts(size: int) -> np.ndarray:
    return np.arange(1, max(size, 2))  # One worker alone hears itself.


def basis(name: str, size: int, degree: int, seed: int) -> np.ndarray:
    """The shifts that are drawn beforehand, as the published code draws them."""
    degree = check_integer(degree, f"{name}: degree")
    seed = check_integer(seed, f"{name}: seed", minimum=0)
    return np.random.RandomState(seed).choice(_all_shifts(size), degree)


def _shift(size: int, shift: int) -> np.ndarray:
    """Each worker hears the one that is so many places further on the ring."""
    own = np.eye(size)
    return own / size + (size - 1) / size * np.roll(own, shift, axis=1)


def pairs(size: int, shift: int, start: int) -> np.ndarray:
    """Pairs workers that are a shift apart, as long as both are free."""
    partner = np.arange(size)
    free = np.ones(size, bool)
    for i in (np.arange(size) + start) % size:
        j = (i + shift) % size
        if free[i] and free[j]:
            partner[i], partner[j] = j, i
            free[i] = free[j] = False
    return np.eye(size)[partner]
