"""Checks of the matrices of a schedule, and how fast they bring workers together."""

import networkx as nx
import numpy as np

from ._checks import (
    NEGLIGIBLE,
    TOLERANCE,
)

# What rounding leaves of differences that cancel, relative to them.
_CANCELLED = 1e-12


def check_matrices(matrices: np.ndarray) -> None:
    """Accepts column-stochastic matrices whose period brings workers to a consensus."""
    if (
        matrices.ndim != 3
        or matrices.shape[1] != matrices.shape[2]
        or not matrices.size
    ):
        raise ValueError(
            f"matrices have shape {matrices.shape}, not [period, n, n]; "
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

    Returns:
      :math:`|\lambda|^{1/P}` with the largest eigenvalue, other than the one of the
      consensus, of the product of the :math:`P` matrices.
    """
    # Columns sum to one, so that numbers which sum to zero go on to do so. They are
    # given by those of all workers but worker 0, and on them the product has all of its
    # eigenvalues but the one of the consensus.
    reduced = matrices[:, 1:, 1:] - matrices[:, 1:, :1]
    product, exponent = np.eye(reduced.shape[1]), 0
    for matrix in reduced:
        product = matrix @ product
        largest = np.abs(product).max(initial=0.0)
        if largest <= _CANCELLED:  # The workers agree exactly.
            return 0.0
        # Long periods contract by more than the smallest number. Powers of two scale
        # without rounding.
        power = int(np.frexp(largest)[1])
        product, exponent = np.ldexp(product, -power), exponent + power
    modulus = np.abs(np.linalg.eigvals(product)).max()
    if modulus <= _CANCELLED:
        return 0.0
    return float(2 ** ((np.log2(modulus) + exponent) / len(matrices)))


def _check_entries(matrices: np.ndarray) -> None:
    """Accepts finite weights, negative ones where rows sum to one as well."""
    # Otherwise the scalars of push-sum, which models are divided by, could vanish.
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
    """Accepts periods whose repetition brings the workers to a consensus.

    It does if the product of a period's matrices is primitive. Where every worker keeps
    a share in every step, it is whenever the links connect all workers.
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
    """Accepts periods with negative weights that bring the workers to a consensus."""
    if (modulus := contraction(matrices)) >= 1 - TOLERANCE:
        t, i, j = np.argwhere(matrices < 0)[0].tolist()
        raise ValueError(
            "the matrices reach no consensus: differences between workers change by "
            f"the factor {modulus:.6g} a step, which has to be below 1; weights such "
            f"as entry [{i}, {j}] of matrix {t}, {matrices[t, i, j].item():.6g}, are "
            "negative, so give smaller weights to the messages"
        )


def _as_graph(links: np.ndarray) -> nx.DiGraph:
    """An edge from each sender, the column, to each of its receivers."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(links)))
    graph.add_edges_from((j, i) for i, j in np.argwhere(links).tolist())
    return graph
