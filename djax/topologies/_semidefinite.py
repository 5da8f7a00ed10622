r"""The two small semidefinite programs of the builders, by an interior-point method.

The weights of `weights="fastest"` and the probabilities of :func:`matcha` have no
closed form. Both minimise a linear cost over matrices that stay positive definite, with
at most some hundred variables. Libraries that solve such programs are larger than djax,
and a few steps of Newton's method with a logarithmic barrier are enough.
"""

from collections.abc import Callable

import numpy as np

# Factor by which the weight of the cost grows from one center to the next.
_GROWTH = 10.0
# A center is found when cost and barrier together can fall by half of this at most.
_DECREMENT = 1e-9
# Newton's method needs about ten steps to a center. If it needs many more, rounding
# errors keep it from coming closer.
_MOST_STEPS = 60

Barrier = Callable[[np.ndarray], float]
Derivatives = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def fastest_weights(incidence: np.ndarray, constant: float) -> np.ndarray:
    r"""The weights of the edges that minimise :math:`s = \|W - J\|`.

    All entries of :math:`J` are :math:`1 / n`. With the columns :math:`b_l` of the
    incidence matrix and :math:`A = I - J - \sum_l w_l b_l b_l^\top = W - J`, the
    weights minimise :math:`s` under the constraints :math:`s I - A \succeq 0` and
    :math:`s I + A \succeq 0`.

    Args:
      incidence: `float64[n, edges]`: 1 at one end of each edge, -1 at its other end.
      constant: a weight with which, on all edges, the workers reach a consensus.

    Returns:
      `float64[edges]`. Some of the weights may be negative.
    """
    size, edges = incidence.shape
    own, rest = np.eye(size), np.eye(size) - 1 / size

    def slacks(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two matrices that stay positive definite, given the weights and s."""
        deviation = rest - incidence * x[:-1] @ incidence.T
        return x[-1] * own - deviation, x[-1] * own + deviation

    def barrier(x: np.ndarray) -> float:
        return -sum(map(_log_determinant, slacks(x)))

    def derivatives(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gradient, hessian = np.zeros(len(x)), np.zeros((len(x), len(x)))
        for sign, slack in zip((1, -1), slacks(x), strict=True):
            inverse = np.linalg.inv(slack)
            applied = inverse @ incidence
            products = incidence.T @ applied
            gradient[:-1] -= sign * np.diag(products)
            gradient[-1] -= np.trace(inverse)
            hessian[:-1, :-1] += products**2
            hessian[:-1, -1] += sign * (applied**2).sum(axis=0)
            hessian[-1, -1] += (inverse**2).sum()
        hessian[-1, :-1] = hessian[:-1, -1]
        return gradient, hessian

    # If all edges have the constant weight, s is below 1: the point with s = 1 is
    # inside.
    start = np.append(np.full(edges, constant), 1.0)
    cost = np.append(np.zeros(edges), 1.0)
    options = {"degree": 2 * size, "accuracy": 1e-10}
    return minimize(cost, barrier, derivatives, start, **options)[:-1]


def activation_probabilities(laplacians: np.ndarray, budget: float) -> np.ndarray:
    """The probabilities of the rounds that connect the workers best: see `matcha`.

    Args:
      laplacians: `float64[rounds, n, n]`, the Laplacian of the edges of each round.
      budget: the largest mean of the probabilities, in (0, 1].

    Returns:
      `float64[rounds]`.
    """
    count, size, _ = laplacians.shape
    if budget == 1:
        return np.ones(count)
    # All Laplacians share the eigenvalue 0, whose eigenvector has equal entries. That
    # eigenvalue is moved above the largest possible lambda_2. Then lambda_2 is the
    # smallest eigenvalue.
    moved = np.full((size, size), 1 + 1 / size)

    def slacks(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What stays positive, given the probabilities and a bound on lambda_2."""
        whole = np.tensordot(x[:-1], laplacians, axes=1) + moved
        limits = np.concatenate([x[:-1], 1 - x[:-1], [budget * count - x[:-1].sum()]])
        return whole - x[-1] * np.eye(size), limits

    def barrier(x: np.ndarray) -> float:
        matrix, limits = slacks(x)
        if limits.min() <= 0:
            return np.inf
        return -_log_determinant(matrix) - float(np.log(limits).sum())

    def derivatives(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        matrix, limits = slacks(x)
        # How the slacks change with each of the variables.
        changes = np.concatenate([laplacians, -np.eye(size)[np.newaxis]])
        slopes = np.zeros((len(limits), count + 1))
        slopes[:, :-1] = np.vstack([np.eye(count), -np.eye(count), -np.ones(count)])
        applied = np.linalg.inv(matrix) @ changes
        relative = slopes / limits[:, np.newaxis]
        gradient = -np.trace(applied, axis1=1, axis2=2) - relative.sum(axis=0)
        hessian = np.einsum("aij,bji->ab", applied, applied) + relative.T @ relative
        return gradient, hessian

    start = np.full(count + 1, 0.9 * budget)
    start[-1] = np.linalg.eigvalsh(slacks(np.append(start[:-1], 0.0))[0])[0] / 2
    cost = np.append(np.zeros(count), -1.0)
    options = {"degree": size + 2 * count + 1, "accuracy": 1e-9}
    return minimize(cost, barrier, derivatives, start, **options)[:-1]


def minimize(
    cost: np.ndarray,
    barrier: Barrier,
    derivatives: Derivatives,
    start: np.ndarray,
    *,
    degree: int,
    accuracy: float,
) -> np.ndarray:
    r"""Minimises :math:`c^\top x` over the interior of the domain of a barrier.

    Follows the central path, which consists of the minimisers of :math:`t c^\top x +
    \phi(x)` for growing :math:`t`. Their cost is at most :math:`\nu / t` above the
    smallest one.

    Args:
      cost: :math:`c`.
      barrier: :math:`\phi`, self-concordant, and infinite outside of the domain.
      derivatives: returns the gradient and the Hessian of the barrier.
      start: any point inside of the domain.
      degree: :math:`\nu`, the number of logarithms in the barrier.
      accuracy: by how much the cost may exceed the smallest one.

    Returns:
      A point inside of the domain.

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


def _center(
    cost: np.ndarray, barrier: Barrier, derivatives: Derivatives, x: np.ndarray
) -> np.ndarray:
    """Minimises the sum of cost and barrier by Newton's method."""
    for _ in range(_MOST_STEPS):
        gradient, hessian = derivatives(x)
        gradient = cost + gradient
        step = -np.linalg.solve(hessian, gradient)
        slope = gradient @ step
        if -slope < _DECREMENT:
            break
        here, length = barrier(x), 1.0
        # Differences of the cost are computed from the step: subtracting two large
        # costs would lose small changes to rounding.
        while (
            length * (cost @ step) + barrier(x + length * step) - here
            > 0.1 * length * slope
        ):
            length /= 2
            if length < 1e-6:  # Rounding errors are all that is left.
                return x
        x = x + length * step
    return x


def _log_determinant(matrix: np.ndarray) -> float:
    """The log-determinant of a positive definite matrix; else minus infinity."""
    try:
        return 2 * float(np.log(np.diag(np.linalg.cholesky(matrix))).sum())
    except np.linalg.LinAlgError:
        return -np.inf
