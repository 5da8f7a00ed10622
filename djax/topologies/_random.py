"""Schedules that are drawn at random, once and beforehand."""

import numpy as np

from ._checks import (
    check_integer,
    check_size,
)
from ._schedule import Schedule


def random_matchings(size: int, period: int = 64, seed: int = 0) -> Schedule:
    r"""Averages in pairs of workers that are drawn anew in each step.

    All ways to pair the workers are equally likely:

    .. math:: x_i \leftarrow \tfrac 1 2 x_i + \tfrac 1 2 x_{\pi_t(i)}

    With an odd number of workers one of them, drawn anew in each step, stays alone.

    Args:
      size: number of workers.
      period: the number of matchings that are drawn, after which they repeat.
      seed: of `numpy.random.default_rng`.

    Returns:
      A symmetric :class:`Schedule` with one round per step.

    Raises:
      ValueError: the size, the period or the seed is no such integer, or the matchings
        that were drawn do not connect all workers.

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
    matrices = np.tile(np.eye(size), (period, 1, 1))
    for matrix in matrices:
        order = generator.permutation(size)
        # With an odd size the last one is nobody's partner.
        a, b = order[0 : size - 1 : 2], order[1::2]
        matrix[a, a] = matrix[b, b] = matrix[a, b] = matrix[b, a] = 0.5
    return drawn_schedule(matrices, "random_matchings")


def draws(name: str, period: int, seed: int) -> tuple[int, np.random.Generator]:
    """Returns a checked number of steps, and what draws them."""
    period = check_integer(period, f"{name}: period")
    seed = check_integer(seed, f"{name}: seed", minimum=0)
    return period, np.random.default_rng(seed)


def drawn_schedule(matrices: np.ndarray, name: str) -> Schedule:
    """A schedule of matrices that are right one by one, but may not be together."""
    try:
        return Schedule(matrices, name)
    except ValueError as error:
        raise ValueError(
            f"{name}: the draws of period={len(matrices)} do not bring the workers "
            f"together; choose a longer period or another seed ({error})"
        ) from error
