"""Checks of the matrices of a schedule, and how fast they bring workers together."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from djax import _networkx as nx

from ._sparse import size_of
from ._steps import Steps
from ._topology_checks import NEGLIGIBLE, TOLERANCE

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Where differences cancel exactly, rounding leaves less than this share of them.
_CANCELLED = 1e-12


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the shape is one `[period, n, n]`."""
    if len(shape) == 3 and shape[1] == shape[2] and 0 not in shape:
        return
    if len(shape) == 2:
        remedy = "put a single matrix into a list"
    elif 0 in shape:
        remedy = "a period has at least one step, and a step at least one worker"
    else:
        remedy = "a matrix has a row and a column for each worker"
    raise ValueError(f"matrices have shape {shape}, not [period, n, n]; {remedy}")


def check_steps(steps: Steps) -> None:
    """Raises ValueError unless weights can be those of a schedule.

    They have to be column-stochastic, and repeating them has to bring the workers to a
    consensus.

    Args:
      steps: `float64[period, n, n]`.
    """
    _check_entries(steps)
    total = steps.column_sums()
    if (wrong := np.abs(total - 1) > TOLERANCE).any():
        t, j = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"column {j} of matrix {t} sums to {total[t, j].item()}, not to 1; divide "
            f"it by its sum, since it says how worker {j} splits what it has"
        )
    _check_strongly_connected(steps)
    if (steps.values < 0).any():
        _check_contraction(steps)
    else:
        _check_consensus(steps)


def contraction(matrices: Iterable[np.ndarray]) -> float:
    r"""By which factor a step brings the workers together, on average over a period.

    Args:
      matrices: `float64[period, n, n]`, whose columns sum to one, or an iterable of
        these matrices.

    Returns:
      :math:`|\lambda|^{1/P}`, where :math:`\lambda` is the largest eigenvalue of the
      product of the :math:`P` matrices, apart from the eigenvalue 1 of the consensus.
      The workers come together if it is below 1.

    Examples:
      >>> from djax import topologies
      >>> round(topologies.contraction(topologies.ring(16).matrices), 4)
      0.9493
    """
    # Columns sum to one. If the values of the workers sum to zero, a step therefore
    # keeps that sum, and the values of all workers but worker 0 determine the value of
    # worker 0. The matrices for these n - 1 values have all eigenvalues of the full
    # matrices except the eigenvalue 1 of the consensus.
    product, exponent, period = np.eye(0), 0, 0
    for matrix in matrices:
        period += 1
        reduced = matrix[1:, 1:] - matrix[1:, :1]
        product = reduced if period == 1 else reduced @ product
        largest = np.abs(product).max(initial=0.0)
        if largest <= _CANCELLED:  # The workers agree exactly.
            return 0.0
        # The product of a long period would underflow. Scaling it by powers of two is
        # exact.
        power = int(np.frexp(largest)[1])
        product, exponent = np.ldexp(product, -power), exponent + power
    modulus = np.abs(np.linalg.eigvals(product)).max()
    if modulus <= _CANCELLED:
        return 0.0
    return float(2 ** ((np.log2(modulus) + exponent) / period))


def _check_entries(steps: Steps) -> None:
    """Raises ValueError unless weights are finite, and not negative.

    Negative weights are allowed where the rows of a matrix sum to one as well. Without
    that condition the scalars of push-sum, by which models are divided, could vanish.
    """
    values = steps.values
    with np.errstate(invalid="ignore"):  # What is not finite is refused below.
        balanced = np.all(np.abs(steps.row_sums() - 1) <= TOLERANCE, axis=1)
    allowed = (values >= 0) | balanced[steps.indices[0]]
    if (wrong := ~(np.isfinite(values) & allowed)).any():
        t, i, j, value = _first(steps, wrong)
        raise ValueError(
            f"entry [{i}, {j}] of matrix {t} is {value}; weights "
            "must be finite, and not negative unless the rows of the matrix sum to "
            "one as its columns do"
        )


def _first(steps: Steps, chosen: np.ndarray) -> tuple[int, int, int, float]:
    """The step, the row, the column and the value of the first entry of some."""
    k = int(np.argmax(chosen))
    t, i, j = (int(index[k]) for index in steps.indices)
    return t, i, j, steps.values[k].item()


def _check_strongly_connected(steps: Steps) -> None:
    """Raises ValueError unless the steps together lead from any worker to any other."""
    from scipy.sparse import csr_array

    size = steps.shape[1]
    _, receivers, senders = steps.indices
    linked = np.abs(steps.values) > NEGLIGIBLE
    ends = senders[linked], receivers[linked]
    messages = csr_array((np.ones(ends[0].size), ends), (size, size))
    unreached, mute = _unreached(messages), _unreached(messages.T.tocsr())
    if unreached or mute:
        sender, receiver = (0, min(unreached)) if unreached else (min(mute), 0)
        raise ValueError(
            f"nothing from worker {sender} ever reaches worker {receiver}; "
            "give a positive weight to a message on the way"
        )


def _unreached(messages: "csr_array") -> set[int]:
    """The workers to which no path leads from worker 0; senders are rows."""
    from scipy.sparse import csgraph

    reached = csgraph.breadth_first_order(messages, 0, return_predecessors=False)
    return set(range(size_of(messages))) - set(reached.tolist())


def _check_consensus(steps: Steps) -> None:
    """Raises ValueError unless nonnegative weights bring workers to a consensus.

    They do if the product of the matrices of a period is primitive. That is always so
    where the links connect all workers and every worker keeps a share in every step.
    """
    period, size, _ = steps.shape
    _, rows, columns = steps.indices
    kept = steps.values[rows == columns] > NEGLIGIBLE
    if np.count_nonzero(kept) == period * size:
        return
    product = np.eye(size, dtype=np.float32)
    for matrix in steps.matrices():
        links = (matrix > NEGLIGIBLE).astype(np.float32)
        product = (links @ product > 0).astype(np.float32)
    graph = nx.from_numpy_array(product.T, create_using=nx.DiGraph)
    if not (nx.is_strongly_connected(graph) and nx.is_aperiodic(graph)):
        raise ValueError(
            "the matrices reach no consensus: whole periods pass around what workers "
            "have without mixing all of it; let every worker keep a share, as in "
            "(matrices + numpy.eye(n)) / 2"
        )


def _check_contraction(steps: Steps) -> None:
    """Raises ValueError unless weights, some negative, bring the workers together."""
    modulus = contraction(steps.dense())
    if modulus >= 1 - TOLERANCE:
        t, i, j, value = _first(steps, steps.values < 0)
        raise ValueError(
            "the matrices reach no consensus: differences between workers change by "
            f"the factor {modulus:.6g} a step, which has to be below 1; weights such "
            f"as entry [{i}, {j}] of matrix {t}, {value:.6g}, are "
            "negative, so give smaller weights to the messages"
        )
