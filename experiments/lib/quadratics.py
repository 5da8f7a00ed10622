r"""Random quadratics with a known optimum and a chosen heterogeneity.

.. math:: f(x) = \tfrac1n \textstyle\sum_i \|A_i x - b_i\|^2

These are the problems of the RelaySGD paper's simulations: Vogels et al., `RelaySum for
Decentralized Deep Learning on Heterogeneous Data <https://arxiv.org/abs/2110.04175>`_,
2021, Appendix. A seed gives the same problem here as in the paper's code.
"""

import math
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
        r"""Computes the mean objective :math:`f(x)` at `x`, `[d]`."""
        return ((self.matrices @ x - self.offsets) ** 2).sum() / len(self.matrices)

    def heterogeneity(self) -> float:
        r"""Computes the mean squared norm of the workers' gradients at the optimum.

        It is :math:`\zeta^2 = \frac1n \sum_i \|A_i^\top (A_i x^* - b_i)\|^2`.
        """
        residuals = self.matrices @ self.optimum - self.offsets
        gradients = np.einsum("nab,na->nb", self.matrices, residuals)
        return float((gradients**2).sum() / len(self.matrices))


def random_quadratics(
    workers: int,
    dim: int,
    heterogeneity: float,
    *,
    distance: float = 1.0,
    smallest: float | None = None,
    seed: int = 1,
) -> Quadratics:
    r"""Draws quadratics with a heterogeneity of :math:`\zeta^2` at the optimum.

    It is the mean squared norm of the workers' gradients there.

    Args:
      distance: distance of the optimum from zero, where training starts.
      smallest: smallest singular value of each :math:`A_i`. The singular values are
        evenly spaced from `smallest` to 1. By default they are the rescaled singular
        values of a Gaussian matrix.
    """
    if workers == 1 and heterogeneity:
        raise ValueError("one worker alone has heterogeneity 0.")
    normals = _Normals(seed)
    left, values, right = np.linalg.svd(normals.draw(workers, dim, dim))
    if smallest is None:
        values = values * (1 / values.max(axis=1, keepdims=True))
    else:  # As in the paper's code, the direction of the largest gets the smallest.
        values = np.broadcast_to(np.linspace(smallest, 1, dim), values.shape)
    matrices = (left * values[:, None, :]) @ right

    def centered(offsets):
        """Changes the offsets so that the optimum of the mean objective is zero."""
        stacked = matrices.reshape(-1, dim)
        optimum = np.linalg.lstsq(stacked, offsets.ravel(), rcond=None)[0]
        return Quadratics(matrices, offsets - matrices @ optimum, np.zeros(dim))

    # zeta^2 grows with the square of the workers' own optima.
    own_optima = normals.draw(workers, dim, 1)
    unit = centered((matrices @ own_optima)[..., 0])
    scale = np.sqrt(heterogeneity / unit.heterogeneity()) if heterogeneity else 0.0

    direction = normals.draw(dim)
    optimum = distance * direction / np.linalg.norm(direction)
    return Quadratics(matrices, scale * unit.offsets + matrices @ optimum, optimum)


class _Normals:
    """Draws the standard normal numbers that PyTorch draws on a CPU, in float64.

    PyTorch uses a Mersenne Twister and the transform of Box and Muller. Draws of 16 and
    more numbers are transformed in blocks of 16, whose first half become cosines and
    whose second half sines.
    """

    def __init__(self, seed: int):
        self._twister = np.random.RandomState(seed)

    def draw(self, *shape: int) -> np.ndarray:
        count = math.prod(shape)
        if count < 16:
            angle, radius = self._uniform(count + count % 2).reshape(-1, 2).T
            return _box_muller(radius, angle).ravel()[:count].reshape(shape)
        normal = self._blocks(self._uniform(count)[: count // 16 * 16])
        if count % 16:  # The last 16 numbers are drawn again, as one block.
            last = self._blocks(self._uniform(16))
            normal = np.concatenate([normal[: count - 16], last])
        return normal.reshape(shape)

    def _uniform(self, count: int) -> np.ndarray:
        words = np.frombuffer(self._twister.bytes(8 * count), "<u4").astype(np.uint64)
        high, low = words.reshape(count, 2).T
        return (((high << 32) | low) & (2**53 - 1)) * 2.0**-53

    @staticmethod
    def _blocks(uniform: np.ndarray) -> np.ndarray:
        radius, angle = uniform.reshape(-1, 2, 8).swapaxes(0, 1)
        return _box_muller(radius, angle).swapaxes(-1, -2).ravel()


def _box_muller(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Makes pairs of normal numbers, `[..., 2]`, from uniform numbers in [0, 1)."""
    radius, angle = np.sqrt(-2 * np.log1p(-radius)), 2 * np.pi * angle
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
