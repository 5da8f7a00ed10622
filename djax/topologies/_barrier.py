"""Small semidefinite programs, by an interior-point method in NumPy.

Two builders need one each: the fastest mixing weights, and the probabilities of MATCHA.
"""

from collections.abc import Callable

import numpy as np

# By how much the weight of the cost grows between two centers.
_GROWTH = 10.0
# Of a center: twice by how much the cost and the barrier might still fall.
_DECREMENT = 1e-9
# Newton's method needs about ten steps to a center. More say that rounding stops it.
_MOST_STEPS = 60

Barrier = Callable[[np.ndarray], float]
Derivatives = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def minimize(
    cost: np.ndarray,
    barrier: Barrier,
    derivatives: Derivatives,
    start: np.ndarray,
    *,
    degree: int,
    accuracy: float,
) -> np.ndarray:
    r"""Minimises :math:`c^\top x` inside of the domain of a barrier.

    Follows the central path: the minimisers of :math:`t c^\top x + \phi(x)` for growing
    :math:`t`. Their cost is at most :math:`\nu / t` above the smallest one.

    Args:
      cost: :math:`c`.
      barrier: :math:`\phi`, self-concordant; infinite outside of the domain.
      derivatives: the gradient and the Hessian of the barrier.
      start: any point inside.
      degree: of the barrier, :math:`\nu`: the number of its logarithms.
      accuracy: how close the cost has to come to the smallest one.

    Returns:
      A point inside.

    References:
      Boyd and Vandenberghe, `Convex Optimization <https://stanford.edu/~boyd/cvxbook>`_,
      2004, Section 11.3
    """
    x, scale = start, 1.0
    while True:
        x = _center(scale * cost, barrier, derivatives, x)
        if degree / scale <= accuracy:
            return x
        scale *= _GROWTH


def log_determinant(matrix: np.ndarray) -> float:
    """Of a positive definite matrix, and minus infinity of any other."""
    try:
        return 2 * float(np.log(np.diag(np.linalg.cholesky(matrix))).sum())
    except np.linalg.LinAlgError:
        return -np.inf


def _center(
    cost: np.ndarray, barrier: Barrier, derivatives: Derivatives, x: np.ndarray
) -> np.ndarray:
    """Minimises the cost and the barrier together, by Newton's method."""
    for _ in range(_MOST_STEPS):
        gradient, hessian = derivatives(x)
        gradient = cost + gradient
        step = -np.linalg.solve(hessian, gradient)
        slope = gradient @ step
        if -slope < _DECREMENT:
            break
        here, length = barrier(x), 1.0
        # The large cost itself would hide small changes behind its rounding.
        while (
            length * (cost @ step) + barrier(x + length * step) - here
            > 0.1 * length * slope
        ):
            length /= 2
            if length < 1e-6:  # Rounding.
                return x
        x = x + length * step
    return x
