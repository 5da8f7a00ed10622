r"""With which rates D², LED and ProxSkip are stable.

These corrections are one linear recursion, and with too large a rate it diverges,
whatever the gradients are. Without gradients, a worker makes :math:`\tau` steps along
its correction :math:`c`, and then averages with the mixing matrix W:

.. math::
   z = x + \tau c, \qquad x \leftarrow W z, \qquad c \leftarrow c + \beta (W z - z).

Differences between the workers have to shrink in this recursion.
"""

import math
from collections.abc import Sequence

import numpy as np

# Random coins over a schedule of graphs may repeat only after a very long time. The
# growth is therefore computed over about this number of averagings at most.
MOST_AVERAGINGS = 4096


def smallest_eigenvalue(matrices: np.ndarray) -> float | None:
    """The smallest eigenvalue of a fixed symmetric matrix; None for all others.

    Args:
      matrices: `float[period, n, n]`, the mixing matrices of a period.
    """
    if len(matrices) == 1 and np.allclose(matrices[0], matrices[0].T):
        return float(np.linalg.eigvalsh(matrices[0])[0])
    return None


def growth(
    matrices: np.ndarray, intervals: Sequence[int] = (1,), dual_rate: float = 1.0
) -> float:
    r"""Returns the factor by which differences between workers grow over a period.

    The columns of the matrices sum to one. If the values of the workers sum to zero,
    they therefore keep this sum, and the values of all workers but one describe them.

    Args:
      matrices: `float[period, n, n]`, the mixing matrices of a period.
      intervals: :math:`\tau`, the number of steps up to each averaging of a period.
      dual_rate: :math:`\beta`.
    """
    reduced = matrices[:, 1:, 1:] - matrices[:, 1:, :1]
    # The columns are starts, with 1 in one number of a model or a correction.
    model, correction = np.split(np.eye(2 * reduced.shape[1]), 2)
    averagings = math.lcm(len(matrices), len(intervals))
    if averagings > MOST_AVERAGINGS:
        averagings = len(matrices) * math.ceil(MOST_AVERAGINGS / len(matrices))
    for t in range(averagings):
        before = model + intervals[t % len(intervals)] * correction
        model = reduced[t % len(matrices)] @ before
        correction = correction + dual_rate * (model - before)
        largest = max(np.abs(x).max(initial=0) for x in (model, correction))
        if not 1e-100 < largest < 1e100:  # It is decided; the rest would overflow.
            return 0.0 if largest < 1 else float("inf")
    product = np.concatenate([model, correction])
    return float(np.abs(np.linalg.eigvals(product)).max(initial=0.0))


def rounded_down(number: float) -> float:
    """Rounds a positive number down to four digits, which an error can show."""
    if not 0 < number < float("inf"):
        return number
    digits = 10 ** (3 - np.floor(np.log10(number)))
    return float(np.floor(number * digits * (1 + 1e-9)) / digits)
