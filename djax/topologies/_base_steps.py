"""The matrices of base graphs, step by step."""

from collections.abc import Iterable
from itertools import count, repeat, takewhile

import numpy as np


def _factors(size: int, degree: int) -> tuple[list[int], int]:
    """Factors of at most `degree + 1` in ascending order, and what is left."""
    factors = []
    for factor in range(degree + 1, 1, -1):
        while size % factor == 0:
            factors.append(factor)
            size //= factor
    return factors[::-1], size


def is_smooth(size: int, degree: int) -> bool:
    """Whether the size is a product of numbers of at most `degree + 1`."""
    return _factors(size, degree)[1] == 1


def hyper_hypercube_steps(size: int, degree: int) -> list[np.ndarray]:
    """The steps of :func:`hyper_hypercube`, for a size that is smooth."""
    matrices, stride = [], 1
    for factor in _factors(size, degree)[0]:
        workers = np.arange(size).reshape(-1, factor, stride)
        groups = workers.transpose(0, 2, 1).reshape(-1, factor)
        mean = np.full((factor, factor), 1 / factor)
        matrices.append(_with_blocks(np.eye(size), groups, repeat(mean, len(groups))))
        stride *= factor
    return matrices or [np.eye(1)]  # One worker alone has a step in which it is silent.


def simple_base_graph_steps(
    size: int, degree: int, *, inner_edges: bool = True
) -> list[np.ndarray]:
    """The steps of :func:`simple_base_graph`.

    The workers of a donor that are left over average if there are `inner_edges`. The
    result of a period does not depend on it.
    """
    if is_smooth(size, degree):
        return hyper_hypercube_steps(size, degree)
    parts = _parts(size, degree + 1)
    first = [hyper_hypercube_steps(part.size, degree) for part in parts]
    last = [_last_steps(part, degree) for part in parts]
    starts = [min(place, len(parts) - 1) for place in range(1, len(parts) + 1)]
    matrices = []
    for t in range(len(first[0])):
        blocks = [steps[t % len(steps)] for steps in first]
        matrices.append(_with_blocks(np.eye(size), parts, blocks))
    for t in range(1 + len(last[0])):
        # Parts finish after they were the donor. The smallest part is never the donor.
        done = [place for place, start in enumerate(starts) if t >= start]
        blocks = [last[p][(t - starts[p]) % len(last[p])] for p in done]
        matrix = _with_blocks(np.eye(size), [parts[p] for p in done], blocks)
        if t < len(parts) - 1:
            _donate(matrix, parts[t], parts[t + 1 :], degree + 1, inner_edges)
        matrices.append(matrix)
    return matrices


def base_graph_steps(size: int, degree: int) -> list[np.ndarray]:
    """The steps of :func:`base_graph`."""
    rough = _factors(size, degree)[1]
    runs = np.arange(size).reshape(-1, rough)
    joined = [
        _with_blocks(np.eye(size), groups, repeat(matrix, len(groups)))
        for groups, matrices in (
            (runs, simple_base_graph_steps(rough, degree)),
            (runs.T, hyper_hypercube_steps(size // rough, degree)),
        )
        for matrix in matrices
    ]
    simple = simple_base_graph_steps(size, degree)
    return simple if len(simple) < len(joined) else joined


def _parts(size: int, base: int) -> list[np.ndarray]:
    """The workers of each digit that is not zero, `int[digit, base**place]`."""
    parts, start = [], 0
    for width in reversed([*takewhile(size.__ge__, (base**q for q in count()))]):
        if digit := size // width % base:
            stop = start + digit * width
            parts.append(np.arange(start, stop).reshape(digit, width))
            start = stop
    return parts


def _last_steps(part: np.ndarray, degree: int) -> list[np.ndarray]:
    """How the workers of a part average after the mean has come to each subpart."""
    subparts, width = part.shape
    if width == 1:  # Each subpart is a worker: rounding apart they agree already.
        return hyper_hypercube_steps(subparts, degree)
    own = np.eye(subparts)
    return [np.kron(own, matrix) for matrix in hyper_hypercube_steps(width, degree)]


def _donate(
    matrix: np.ndarray,
    donor: np.ndarray,
    smaller: list[np.ndarray],
    base: int,
    inner_edges: bool,
) -> None:
    """Workers of the smaller parts average with one worker of each subpart."""
    receivers = np.concatenate([part.ravel() for part in reversed(smaller)])
    share = donor.size / (donor.size + len(receivers))
    weight = share / len(donor)
    for i, givers in zip(receivers, donor.T[::-1], strict=False):
        matrix[i, givers] = matrix[givers, i] = weight
        matrix[i, i], matrix[givers, givers] = 1 - share, 1 - weight
    rest = donor[:, : donor.shape[1] - len(receivers)].ravel()
    for start in range(0, len(rest) if inner_edges else 0, base):
        group = rest[start : start + base]
        matrix[np.ix_(group, group)] = 1 / len(group)


def _with_blocks(
    matrix: np.ndarray, groups: Iterable[np.ndarray], blocks: Iterable[np.ndarray]
) -> np.ndarray:
    """Writes the matrix of each group of workers into that of all workers."""
    for group, block in zip(groups, blocks, strict=True):
        workers = group.ravel()
        matrix[np.ix_(workers, workers)] = block
    return matrix
