"""The races in NumPy, with all workers in one array, as its users write them.

Each function takes the arrays of `benchmarks.races.problems`, and returns a function
that runs the race and returns its result.
"""

from collections.abc import Callable

import numpy as np

# With more workers, a sparse matrix of weights is faster than a dense one.
SPARSE = 100


def quadratics(matrices, offsets, weights, rate, steps) -> Callable[[], np.ndarray]:
    """D-PSGD; returns the models `[n, d]`."""
    transposed = matrices.swapaxes(1, 2)
    if len(weights) > SPARSE:
        import scipy.sparse  # Imported here, since it takes a fifth of a second.

        weights = scipy.sparse.csr_array(weights)

    def run():
        x = np.zeros_like(offsets)
        for _ in range(steps):
            residuals = matrices @ x[..., None] - offsets[..., None]
            x = weights @ (x - rate * (transposed @ residuals)[..., 0])
        return x

    return run


def local_steps(matrices, offsets, rate, steps, period) -> Callable[[], np.ndarray]:
    """SGD with an average over all workers after every `period` steps; `[n, d]`."""
    transposed = matrices.swapaxes(1, 2)

    def run():
        x = np.zeros_like(offsets)
        for _ in range(steps // period):
            for _ in range(period):
                residuals = matrices @ x[..., None] - offsets[..., None]
                x = x - rate * (transposed @ residuals)[..., 0]
            x = np.broadcast_to(x.mean(0), x.shape)
        return x

    return run


def asynchronous(
    matrices, offsets, rate, worker, peer, time, duration
) -> Callable[[], np.ndarray]:
    """AD-PSGD as a loop over events; returns the models `[n, d]`."""
    events = list(zip(worker.tolist(), peer.tolist(), strict=True))

    def run():
        x = np.zeros_like(offsets)
        started = x.copy()
        for i, j in events:
            if j < 0:  # Worker i applies a gradient, and starts the next one.
                matrix = matrices[i]
                x[i] -= rate * ((matrix @ started[i] - offsets[i]) @ matrix)
                started[i] = x[i]
            else:
                x[i] = x[j] = (x[i] + x[j]) / 2
        return x

    return run


def sweep(
    matrices, offsets, optimum, weights, rates, steps
) -> Callable[[], np.ndarray]:
    """D-PSGD with all rates and seeds at once; returns errors `[rates, seeds]`."""
    transposed = matrices.swapaxes(-1, -2)
    rates = rates[:, None, None, None]

    def run():
        x = np.zeros((len(rates), *offsets.shape), offsets.dtype)
        for _ in range(steps):
            residuals = matrices @ x[..., None] - offsets[..., None]
            x = weights @ (x - rates * (transposed @ residuals)[..., 0])
        return np.linalg.norm(x.mean(2) - optimum, axis=-1)

    return run
