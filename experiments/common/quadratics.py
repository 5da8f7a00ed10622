r"""Random quadratics with a known optimum and a chosen heterogeneity.

.. math:: f(x) = \tfrac1n \textstyle\sum_i \|A_i x - b_i\|^2

The generator of the RelaySGD paper's simulations: Vogels et al., `RelaySum for
Decentralized Deep Learning on Heterogeneous Data <https://arxiv.org/abs/2110.04175>`_,
2021, Appendix.
"""

from typing import NamedTuple

import numpy as np


class Quadratics(NamedTuple):
    """The objectives of n workers in d dimensions, float64.

    Attributes:
      matrices: :math:`A_i`, `[n, d, d]`.
      offsets: :math:`b_i`, `[n, d]`.
      optimum: the minimizer of the mean objective, `[d]`.
    """

    matrices: np.ndarray
    offsets: np.ndarray
    optimum: np.ndarray

    def value(self, x):
        r"""The mean objective :math:`f(x)` at `x [d]`."""
        return ((self.matrices @ x - self.offsets) ** 2).sum() / len(self.matrices)

    def heterogeneity(self) -> float:
        r""":math:`\zeta^2 = \frac1n \sum_i \|A_i^\top (A_i x^* - b_i)\|^2`."""
        residuals = self.matrices @ self.optimum - self.offsets
        gradients = np.einsum("nab,na->nb", self.matrices, residuals)
        return float((gradients**2).sum() / len(self.matrices))


def random_quadratics(
    workers: int,
    dim: int,
    heterogeneity: float,
    *,
    distance: float = 1.0,
    largest: float = 1.0,
    smallest: float | None = None,
    seed: int = 1,
) -> Quadratics:
    r"""Draws quadratics for all workers.

    Args:
      workers: :math:`n`.
      dim: :math:`d`.
      heterogeneity: :math:`\zeta^2` at the optimum.
      distance: of the optimum from zero, where training starts.
      largest: largest singular value of each :math:`A_i`.
      smallest: smallest singular value, all of them then evenly spaced; by default
        the values of a Gaussian matrix, rescaled.
      seed: of the draw.

    Returns:
      The quadratics.
    """
    if workers == 1 and heterogeneity:
        raise ValueError("one worker alone has heterogeneity 0.")
    rng = np.random.default_rng(seed)
    left, values, right = np.linalg.svd(rng.standard_normal((workers, dim, dim)))
    if smallest is None:
        values = values * (largest / values.max(axis=1, keepdims=True))
    else:
        values = np.broadcast_to(np.linspace(largest, smallest, dim), values.shape)
    matrices = (left * values[:, None, :]) @ right

    def centered(offsets):
        """Moves the common optimum to zero."""
        optimum = _least_squares(matrices, offsets)
        return Quadratics(matrices, offsets - matrices @ optimum, np.zeros(dim))

    # zeta^2 grows with the square of the workers' own optima.
    own_optima = rng.standard_normal((workers, dim, 1))
    unit = centered((matrices @ own_optima)[..., 0])
    scale = np.sqrt(heterogeneity / unit.heterogeneity()) if heterogeneity else 0.0

    direction = rng.standard_normal(dim)
    optimum = distance * direction / np.linalg.norm(direction)
    return Quadratics(matrices, scale * unit.offsets + matrices @ optimum, optimum)


def _least_squares(matrices: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    dim = matrices.shape[-1]
    return np.linalg.lstsq(matrices.reshape(-1, dim), offsets.ravel(), rcond=None)[0]
