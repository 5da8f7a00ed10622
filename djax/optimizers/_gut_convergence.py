"""With which numbers Global Update Tracking brings workers together.

Without gradients the models follow a linear recursion. The eigenvectors of the mixing
matrix take it apart into recursions of three numbers each, so that its growth can be
calculated before a run.
"""

import jax
import numpy as np

from djax.topologies import Graph

# Equal changes of all workers have to shrink. Differences between workers may alternate
# without growing, as on the boundary of D².
_LARGEST_OF_MEAN, _LARGEST_OF_DIFFERENCES = 1 - 1e-9, 1 + 1e-6


def check_convergence(
    graph: Graph,
    scaling: float,
    momentum: float,
    nesterov: bool,
    consensus_rate: float,
) -> None:
    """Raises ValueError if the models would move apart without gradients.

    Traced numbers, which `optax.inject_hyperparams` passes, cannot be checked.
    """
    numbers = scaling, momentum, consensus_rate
    if any(isinstance(number, jax.core.Tracer) for number in numbers):
        return
    matrix = graph.matrices[0]
    symmetric = np.allclose(matrix, matrix.T)
    modes = (np.linalg.eigvalsh if symmetric else np.linalg.eigvals)(matrix)
    rates = float(scaling), float(momentum), float(consensus_rate)
    matrices = _recursions(modes, *rates, nesterov=nesterov)
    # The value of the mean of the workers is kept: only its changes have to shrink.
    of_mean = np.isclose(modes, 1, rtol=0, atol=1e-9)
    if _growth(matrices[of_mean, 1:, 1:]) > _LARGEST_OF_MEAN:
        raise ValueError(
            f"gut: with scaling={scaling} and momentum={momentum} every step would "
            "lengthen the next one: use a smaller scaling, such as 0.06 with a "
            "momentum of 0.9."
        )
    if (growth := _growth(matrices[~of_mean])) > _LARGEST_OF_DIFFERENCES:
        raise ValueError(
            f"gut: on {graph!r} the differences between the workers, which have to "
            f"shrink, would be multiplied by {growth:.4g} in each step. The smallest "
            f"eigenvalue of the mixing matrix is {modes.real.min():.4f}: use "
            "weights='lazy', consensus_rate=1, or a smaller scaling and momentum."
        )


def _recursions(
    modes: np.ndarray,
    scaling: float,
    momentum: float,
    consensus_rate: float,
    *,
    nesterov: bool,
) -> np.ndarray:
    """Returns what a step without gradients does to models along each mode.

    If the models of the workers are multiples of an eigenvector of the mixing matrix,
    they stay multiples of it.

    Args:
      modes: the eigenvalues of the mixing matrix, `[n]`.
      scaling: the scaling of the algorithm.
      momentum: the decay of the momentum.
      consensus_rate: the consensus rate of the algorithm.
      nesterov: whether the momentum is Nesterov's.

    Returns:
      `[n, 3, 3]`, for each mode the matrix that multiplies the models, their last
      change, and the momentum times the learning rate.
    """
    zero, one = np.zeros_like(modes), np.ones_like(modes)
    moves = modes - 1  # The eigenvalues of the displacement.
    lead = momentum + momentum**2 if nesterov else momentum
    of_change = -scaling * (1 + moves * (1 - lead))
    direction = np.stack([-moves * (1 + scaling * lead), of_change, zero], axis=1)
    trace = direction + momentum * np.stack([zero, zero, one], axis=1)
    step = direction + momentum * trace if nesterov else trace
    kept = consensus_rate * (1 - consensus_rate) * moves
    change = np.stack([kept, zero, zero], axis=1) - step
    model = change + np.stack([one, zero, zero], axis=1)
    return np.stack([model, change, trace], axis=1)


def _growth(matrices: np.ndarray) -> float:
    """The largest factor by which one of these matrices makes vectors grow for ever."""
    return float(np.abs(np.linalg.eigvals(matrices)).max(initial=0.0))
