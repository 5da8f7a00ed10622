"""Checks of the matrices of a schedule, and how fast they bring workers together."""

import numpy as np

from djax import _networkx as nx

from ._topology_checks import NEGLIGIBLE, TOLERANCE

# Where differences cancel exactly, rounding leaves less than this share of them.
_CANCELLED = 1e-12


def check_matrices(matrices: np.ndarray) -> None:
    """Raises ValueError unless matrices can be those of a schedule.

    They have to be column-stochastic, and repeating them has to bring the workers to a
    consensus.

    Args:
      matrices: `float64[period, n, n]`.
    """
    shape = matrices.shape
    if len(shape) != 3 or shape[1] != shape[2] or not matrices.size:
        raise ValueError(
            f"matrices have shape {shape}, not [period, n, n]; "
            "put a single matrix into a list"
        )
    _check_entries(matrices)
    total = matrices.sum(axis=1)
    if (wrong := np.abs(total - 1) > TOLERANCE).any():
        t, j = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"column {j} of matrix {t} sums to {total[t, j].item()}, not to 1; divide "
            f"it by its sum, since it says how worker {j} splits what it has"
        )
    _check_strongly_connected(np.abs(matrices) > NEGLIGIBLE)
    if (matrices < 0).any():
        _check_contraction(matrices)
    else:
        _check_consensus(matrices > NEGLIGIBLE)


def contraction(matrices: np.ndarray) -> float:
    r"""By which factor a step brings the workers together, on average over a period.

    Args:
      matrices: `float64[period, n, n]`, whose columns sum to one.

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
    reduced = matrices[:, 1:, 1:] - matrices[:, 1:, :1]
    product, exponent = np.eye(reduced.shape[1]), 0
    for matrix in reduced:
        product = matrix @ product
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
    return float(2 ** ((np.log2(modulus) + exponent) / len(matrices)))


def _check_entries(matrices: np.ndarray) -> None:
    """Raises ValueError unless weights are finite, and not negative.

    Negative weights are allowed where the rows of a matrix sum to one as well. Without
    that condition the scalars of push-sum, by which models are divided, could vanish.
    """
    with np.errstate(invalid="ignore"):  # What is not finite is refused below.
        balanced = (np.abs(matrices.sum(axis=2) - 1) <= TOLERANCE).all(axis=1)
    allowed = (matrices >= 0) | balanced[:, None, None]
    if (wrong := ~(np.isfinite(matrices) & allowed)).any():
        t, i, j = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"entry [{i}, {j}] of matrix {t} is {matrices[t, i, j].item()}; weights "
            "must be finite, and not negative unless the rows of the matrix sum to "
            "one as its columns do"
        )


def _check_strongly_connected(links: np.ndarray) -> None:
    """Raises ValueError unless the steps together lead from any worker to any other."""
    graph = _as_graph(np.any(links, axis=0))
    unreached = set(graph) - {0} - nx.descendants(graph, 0)
    mute = set(graph) - {0} - nx.ancestors(graph, 0)
    if unreached or mute:
        sender, receiver = (0, min(unreached)) if unreached else (min(mute), 0)
        raise ValueError(
            f"nothing from worker {sender} ever reaches worker {receiver}; "
            "give a positive weight to a message on the way"
        )


def _check_consensus(links: np.ndarray) -> None:
    """Raises ValueError unless nonnegative weights bring workers to a consensus.

    They do if the product of the matrices of a period is primitive. That is always so
    where the links connect all workers and every worker keeps a share in every step.
    """
    if links.diagonal(axis1=1, axis2=2).all():
        return
    product = np.eye(links.shape[1], dtype=np.float32)
    for step in links.astype(np.float32):
        product = (step @ product > 0).astype(np.float32)
    graph = _as_graph(product)
    if not (nx.is_strongly_connected(graph) and nx.is_aperiodic(graph)):
        raise ValueError(
            "the matrices reach no consensus: whole periods pass around what workers "
            "have without mixing all of it; let every worker keep a share, as in "
            "(matrices + numpy.eye(n)) / 2"
        )


def _check_contraction(matrices: np.ndarray) -> None:
    """Raises ValueError unless weights, some negative, bring the workers together."""
    if (modulus := contraction(matrices)) >= 1 - TOLERANCE:
        t, i, j = np.argwhere(matrices < 0)[0].tolist()
        raise ValueError(
            "the matrices reach no consensus: differences between workers change by "
            f"the factor {modulus:.6g} a step, which has to be below 1; weights such "
            f"as entry [{i}, {j}] of matrix {t}, {matrices[t, i, j].item():.6g}, are "
            "negative, so give smaller weights to the messages"
        )


def _as_graph(links: np.ndarray) -> "nx.DiGraph":
    """The graph with an edge from each sender, a column, to each of its receivers."""
    return nx.from_numpy_array(links.T, create_using=nx.DiGraph)
