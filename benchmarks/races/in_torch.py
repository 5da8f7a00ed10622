"""The races in PyTorch, with all workers in one tensor, as its users write them.

Each function takes the arrays of `benchmarks.races.problems`, and returns a function
that runs the race and returns its result. For the MLP, `torch.func` was twice as fast
as a loop over the workers' modules.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

SPARSE = (
    100  # With more workers, a sparse matrix of weights is faster than a dense one.
)


def _tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def quadratics(matrices, offsets, weights, rate, steps) -> Callable[[], np.ndarray]:
    """D-PSGD; returns the models `[n, d]`."""
    matrices, offsets, weights = _tensors(matrices, offsets[..., None], weights)
    if len(weights) > SPARSE:
        weights = weights.to_sparse_csr()
    rate = float(rate)

    @torch.inference_mode()
    def run():
        x = torch.zeros_like(offsets)
        for _ in range(steps):
            u = x - rate * (matrices.mT @ (matrices @ x - offsets))
            x = (weights @ u[..., 0])[..., None]
        return x[..., 0].numpy()

    return run


def local_steps(matrices, offsets, rate, steps, period) -> Callable[[], np.ndarray]:
    """SGD with an average over all workers after every `period` steps; `[n, d]`."""
    matrices, offsets = _tensors(matrices, offsets[..., None])
    rate = float(rate)

    @torch.inference_mode()
    def run():
        x = torch.zeros_like(offsets)
        for _ in range(steps // period):
            for _ in range(period):
                x = x - rate * (matrices.mT @ (matrices @ x - offsets))
            x = x.mean(0).expand_as(x)
        return x[..., 0].numpy()

    return run


def mlp(
    w0, b0, w1, b1, images, labels, weights, rate, period
) -> Callable[[], np.ndarray]:
    """D-PSGD of an MLP, averaged after every `period` steps; the last layer."""
    n, rate = len(weights), float(rate)
    network = nn.Sequential(nn.Linear(*w0.shape), nn.ReLU(), nn.Linear(*w1.shape))
    start = dict(
        zip(
            ("0.weight", "0.bias", "2.weight", "2.bias"),
            _tensors(w0.T, b0, w1.T, b1),
            strict=True,
        )
    )
    images, labels, weights = _tensors(images, labels.astype(np.int64), weights)

    def loss(params, images, labels):
        logits = torch.func.functional_call(network, params, (images,))
        return nn.functional.cross_entropy(logits, labels)

    gradients = torch.func.vmap(torch.func.grad(loss))

    def run():
        params = {name: x.expand(n, *x.shape) for name, x in start.items()}
        for t in range(images.shape[1]):
            grads = gradients(params, images[:, t], labels[:, t])
            params = {name: x - rate * grads[name] for name, x in params.items()}
            if (t + 1) % period == 0:
                params = {
                    name: (weights @ x.flatten(1)).view_as(x)
                    for name, x in params.items()
                }
        return params["2.weight"].mT.numpy()

    return run


def asynchronous(
    matrices, offsets, rate, worker, peer, time, duration
) -> Callable[[], np.ndarray]:
    """AD-PSGD as a loop over events; returns the models `[n, d]`."""
    events = list(zip(worker.tolist(), peer.tolist(), strict=True))
    (stacked,) = _tensors(offsets)
    matrices, offsets = (list(torch.from_numpy(x)) for x in (matrices, offsets))
    rate = float(rate)

    @torch.inference_mode()
    def run():
        x = list(torch.zeros_like(stacked))
        started = list(x)
        for i, j in events:
            if j < 0:  # Worker i applies a gradient, and starts the next one.
                grads = (matrices[i] @ started[i] - offsets[i]) @ matrices[i]
                x[i] = started[i] = x[i] - rate * grads
            else:
                x[i] = x[j] = (x[i] + x[j]) / 2
        return torch.stack(x).numpy()

    return run


def sweep(
    matrices, offsets, optimum, weights, rates, steps
) -> Callable[[], np.ndarray]:
    """D-PSGD with all rates and seeds at once; returns errors `[rates, seeds]`."""
    matrices, offsets, optimum, weights, rates = _tensors(
        matrices, offsets[..., None], optimum, weights, rates[:, None, None, None, None]
    )

    @torch.inference_mode()
    def run():
        x = torch.zeros(len(rates), *offsets.shape)
        for _ in range(steps):
            u = x - rates * (matrices.mT @ (matrices @ x - offsets))
            x = (weights @ u[..., 0])[..., None]
        return torch.linalg.norm(x[..., 0].mean(2) - optimum, dim=-1).numpy()

    return run


def gossip(weights, steps, **leaves) -> Callable[[], np.ndarray]:
    """Gossip between processes over gloo; returns some entries of each leaf."""
    from mpi4py import MPI

    from benchmarks import torch_step

    torch.set_num_threads(1)  # As torchrun does, since each process has one core.
    torch_step.start(MPI.COMM_WORLD)
    own = [(1 + MPI.COMM_WORLD.rank) * x for x in leaves.values()]
    averaging = torch_step.Gossip(weights, own, int(steps))

    def run():
        averaging()
        return np.concatenate([x.numpy().T.flat[:100] for x in averaging.params])

    return run
