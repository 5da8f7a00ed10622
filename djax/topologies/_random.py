"""Graphs and schedules that are drawn at random, once and beforehand.

A run would be hard to repeat if graphs were drawn while it goes on. A schedule is drawn
for a whole period instead, from a seed, and repeats afterwards.
"""

import math

import numpy as np

from djax import _networkx as nx
from djax._values import check_integer, check_share

from ._schedule import Schedule
from ._sparse import as_sparse, positions
from ._steps import Steps, from_sparse, hearing_one
from ._topology import Topology
from ._topology_checks import check_size


def random_matchings(size: int, period: int = 64, seed: int = 0) -> Schedule:
    r"""Averages in pairs of workers that are drawn anew in each step.

    All ways to pair the workers are equally likely:

    .. math:: x_i \leftarrow \tfrac 1 2 x_i + \tfrac 1 2 x_{\pi_t(i)}

    With an odd number of workers one of them, drawn anew in each step, stays alone.

    Args:
      size: number of workers.
      period: the number of matchings that are drawn, after which they repeat.
      seed: seed of `numpy.random.default_rng`.

    Returns:
      A symmetric :class:`Schedule` with one round per step.

    Raises:
      ValueError: the size or the period is not a positive integer, the seed is not an
        integer of at least 0, or the matchings that were drawn do not connect all
        workers.

    Examples:
      >>> from djax import topologies
      >>> topologies.random_matchings(16)
      Schedule(random_matchings, 16 workers, period 64, 64 rounds, spectral gap 0.315)

    References:
      Boyd, Ghosh, Prabhakar and Shah, `Randomized gossip algorithms
      <https://doi.org/10.1109/TIT.2006.874516>`_, 2006
    """
    size = check_size("random_matchings", size)
    period, generator = draws("random_matchings", period, seed)
    partners = np.tile(np.arange(size), (period, 1))
    for partner in partners:
        order = generator.permutation(size)
        # With an odd size the last worker of the order has no partner.
        a, b = order[0 : size - 1 : 2], order[1::2]
        partner[a], partner[b] = b, a
    return drawn_schedule(hearing_one(partners, 0.5), "random_matchings")


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

    The spectral gap of a ring falls with the square of the number of workers. With
    random neighbours (EquiTopo), any gap can be had from a number of neighbours that
    grows only with the logarithm of the number of workers. Of the shifts :math:`1,
    \dots, n - 1` on a ring, :math:`M` are drawn, with replacement. With the permutation
    matrix :math:`P_a`, in which worker :math:`i` hears worker :math:`i + a \bmod n`,

    .. math:: W = \frac 1 M \sum_{m=1}^M \Bigl(\frac{n - 1}{n} P_{a_m} + \frac 1 n I
              \Bigr) \quad\text{if directed, and else}\quad \frac{W + W^\top} 2

    Args:
      size: number of workers.
      degree: the number of shifts, :math:`M`.
      accuracy: may be given in place of the degree. It is the factor
        :math:`\varepsilon` by which a step has to bring the workers together. The
        degree is then
        :math:`M = \lfloor 8 \ln(2 n / p) / (3 \varepsilon^2) \rfloor`.
      probability: the probability :math:`p` that the accuracy is missed.
      directed: whether worker :math:`i` hears :math:`i + a` without being heard by it
        (D-EquiStatic), or both hear each other (U-EquiStatic).
      seed: seed of `numpy.random.RandomState`.

    Returns:
      A :class:`Topology`, or a doubly stochastic :class:`Schedule` of period 1.

    Raises:
      ValueError: a number is out of its range, none or both of `degree` and `accuracy`
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
    from scipy.sparse import csr_array

    shifts = basis("equi_static", size, degree, seed)
    if math.gcd(size, *shifts.tolist()) > 1:
        raise ValueError(
            f"equi_static: the shifts that were drawn, {shifts.tolist()}, do not "
            f"connect all of the {size} workers; choose a larger degree or another seed"
        )
    steps = hearing_one(_shifted(size, shifts), (size - 1) / size)
    # Entries of several shifts at one place are added up.
    matrix = csr_array((steps.values / degree, steps.indices[1:]), (size, size))
    if directed:
        return Schedule(from_sparse([matrix]), "equi_static")
    matrix = as_sparse((matrix + matrix.T) / 2)
    rows, columns = positions(matrix)
    graph = nx.empty_graph(size)
    ends = rows[rows < columns].tolist(), columns[rows < columns].tolist()
    graph.add_edges_from(zip(*ends, strict=True))
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
    the ring, which begins with a worker that is drawn as well, pairs worker :math:`i`
    with worker :math:`i + a` wherever both are still free. With the permutation matrix
    :math:`P` of the partners, in which a worker without a partner hears itself,

    .. math:: W = (1 - \eta) I + \eta \Bigl(\frac{n - 1}{n} P + \frac 1 n I \Bigr)

    Args:
      size: number of workers.
      degree: the number of shifts that are drawn beforehand, with replacement, for the
        steps to choose from. By default they choose from all shifts.
      eta: :math:`\eta`, in (0, 1], the share of the averaging in a step.
      directed: whether messages are directed.
      period: the number of steps that are drawn, after which they repeat.
      seed: seed of `numpy.random.default_rng`, and of the `numpy.random.RandomState`
        that draws the `degree` shifts.

    Returns:
      A doubly stochastic :class:`Schedule` with one round per step, symmetric unless it
      is directed.

    Raises:
      ValueError: a number is out of its range, or the steps that were drawn do not
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
    heard = []
    for _ in range(period):
        shift = int(generator.choice(shifts))
        if directed:
            heard.append(_shifted(size, shift))
        else:
            heard.append(pairs(size, shift, start=int(generator.integers(size))))
    weight = eta * (size - 1) / size
    return drawn_schedule(hearing_one(np.array(heard), weight), "equi_dyn")


def draws(name: str, period: int, seed: int) -> tuple[int, np.random.Generator]:
    """Checks a period and a seed; returns the period and a random generator."""
    period = check_integer(period, f"{name}: period")
    seed = check_integer(seed, f"{name}: seed", minimum=0)
    return period, np.random.default_rng(seed)


def drawn_schedule(steps: Steps, name: str) -> Schedule:
    """Makes a schedule of weights that may not bring all workers together.

    Raises:
      ValueError: the weights reach no consensus; the error suggests other draws.
    """
    try:
        return Schedule(steps, name)
    except ValueError as error:
        raise ValueError(
            f"{name}: the draws of period={steps.shape[0]} do not bring the workers "
            f"together; choose a longer period or another seed ({error})"
        ) from error


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


def _shifted(size: int, shifts: int | np.ndarray) -> np.ndarray:
    """Whom workers hear where worker `i` hears worker `i + shift`, `[..., n]`."""
    return (np.arange(size) + np.expand_dims(shifts, -1)) % size


def pairs(size: int, shift: int, start: int) -> np.ndarray:
    """Pairs workers that are a shift apart and both still free.

    Args:
      size: number of workers.
      shift: the distance of partners on the ring.
      start: the worker that the walk along the ring begins with.

    Returns:
      `int64[n]`, the partner of each worker; a worker without one is its own.
    """
    partner = list(range(size))
    for i in _shifted(size, start).tolist():
        j = (i + shift) % size
        if partner[i] == i and partner[j] == j:
            partner[i], partner[j] = j, i
    return np.array(partner)
