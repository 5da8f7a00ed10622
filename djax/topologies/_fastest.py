"""The symmetric weights that bring the workers of a graph together fastest."""

import numpy as np

from ._barrier import (
    log_determinant,
    minimize,
)

_ACCURACY = 1e-10


def best_constant(laplacian: np.ndarray) -> float:
    r"""The weight of all edges with the smallest spectral modulus of :math:`I - w L`.

    That is :math:`2 / (\lambda_2 + \lambda_n)`, where the eigenvalues :math:`1 - w
    \lambda_2` and :math:`1 - w \lambda_n` are as far from zero as each other.
    """
    eigenvalues = np.linalg.eigvalsh(laplacian)
    return float(2 / (eigenvalues[1] + eigenvalues[-1]))


def fastest_weights(rows: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
    r"""The weights of the edges that minimise :math:`s = \|W - J\|`.

    With an edge vector :math:`b_l`, 1 at one end and -1 at the other, for each edge and
    :math:`A = I - J - \sum_l w_l b_l b_l^\top = W - J`, they minimise :math:`s` under
    the constraints :math:`s I - A \succeq 0` and :math:`s I + A \succeq 0`.

    Args:
      rows: one end of each edge.
      columns: the other end.
      size: number of workers.

    Returns:
      `float64[edges]`. Some of the weights may be negative.
    """
    vectors = np.zeros((size, len(rows)))
    edges = np.arange(len(rows))
    vectors[rows, edges], vectors[columns, edges] = 1.0, -1.0
    own, rest = np.eye(size), np.eye(size) - 1 / size

    def slacks(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two matrices that stay positive, of the weights and s."""
        deviation = rest - vectors * x[:-1] @ vectors.T
        return x[-1] * own - deviation, x[-1] * own + deviation

    def barrier(x: np.ndarray) -> float:
        return -sum(map(log_determinant, slacks(x)))

    def derivatives(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gradient = np.zeros(len(x))
        hessian = np.zeros((len(x), len(x)))
        for sign, slack in zip((1, -1), slacks(x), strict=True):
            inverse = np.linalg.inv(slack)
            applied = inverse @ vectors
            products = vectors.T @ applied
            gradient[:-1] -= sign * np.diag(products)
            gradient[-1] -= np.trace(inverse)
            hessian[:-1, :-1] += products**2
            hessian[:-1, -1] += sign * (applied**2).sum(axis=0)
            hessian[-1, -1] += (inverse**2).sum()
        hessian[-1, :-1] = hessian[:-1, -1]
        return gradient, hessian

    # With constant weights the modulus is below one, and so this point inside.
    start = np.append(np.full(len(rows), best_constant(vectors @ vectors.T)), 1.0)
    cost = np.append(np.zeros(len(rows)), 1.0)
    options = {"degree": 2 * size, "accuracy": _ACCURACY}
    return minimize(cost, barrier, derivatives, start, **options)[:-1]
