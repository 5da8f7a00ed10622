"""Gossip and PowerGossip in PyTorch over gloo, in the manner of their published code.

These are the opponents of `benchmarks.mpi_step --torch` and of `benchmarks.races`. They
import neither JAX nor djax, so that their memory and their start can be measured, too.
Models are lists of tensors. Tensors are packed into one buffer, which is sent to each
neighbour by `isend`; messages are received one after another, and unpacked. Matrices
are multiplied one by one for each neighbour.
"""

import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def start(comm: Any) -> None:
    """Makes the ranks of a communicator of mpi4py a process group of PyTorch."""
    with socket.socket() as free:
        free.bind(("", 0))
        address = (socket.gethostname(), free.getsockname()[1])
    host, port = comm.bcast(address)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{host}:{port}",
        rank=comm.rank,
        world_size=comm.size,
    )


def stop() -> None:
    """Ends the process group."""
    dist.destroy_process_group()


def tensors(leaves: Sequence[Any]) -> list[torch.Tensor]:
    """Converts arrays to tensors in PyTorch's layout, with outputs first."""
    return [torch.from_numpy(np.ascontiguousarray(np.array(x).T)) for x in leaves]


class Gossip:
    """D-PSGD's averaging on a ring.

    Args:
      weights: the weights of a graph, `float[n, n]`.
      leaves: initial parameters, arrays.
      steps: number of steps of one run.
    """

    def __init__(self, weights: np.ndarray, leaves: Sequence[Any], steps: int):
        """Takes over the parameters."""
        self.params, self.steps = tensors(leaves), steps
        self.rank = dist.get_rank()
        self.weights = weights[self.rank]
        peers = np.flatnonzero(self.weights).tolist()
        self.peers = [i for i in peers if i != self.rank]

    def __call__(self):
        """Runs the steps."""
        for _ in range(self.steps):
            self.step()
        return ()

    def step(self):
        """Replaces the model by the average over the neighbourhood."""
        self.average(self.params)

    def average(self, some: list[torch.Tensor]):
        """Replaces some tensors by their averages, in one message a neighbour."""
        mine = _pack(some)
        average = self.weights[self.rank] * mine
        for peer, theirs in zip(self.peers, _exchange(mine, self.peers), strict=True):
            average.add_(theirs, alpha=self.weights[peer])
        for tensor, new in zip(some, _unpack(average, some), strict=True):
            tensor.copy_(new)


class PowerGossip(Gossip):
    """PowerGossip's averaging on a ring, by one iteration.

    Args:
      weights: the weights of a graph, `float[n, n]`.
      leaves: initial parameters, arrays.
      steps: number of steps of one run.
      rank: number of columns of each message.
    """

    def __init__(
        self, weights: np.ndarray, leaves: Sequence[Any], steps: int, rank: int
    ):
        """Takes over the parameters; draws the factors of each edge."""
        super().__init__(weights, leaves, steps)
        self.matrices = [x.view(len(x), -1) for x in self.params if x.ndim > 1]
        self.vectors = [x for x in self.params if x.ndim <= 1]
        self.factors, self.number = {}, 1
        for peer in self.peers:
            low, high = sorted((self.rank, peer))
            generator = torch.Generator().manual_seed(low * len(weights) + high)
            self.factors[peer] = tuple(
                [
                    torch.randn(m.shape[side], min(rank, *m.shape), generator=generator)
                    for m in self.matrices
                ]
                for side in (0, 1)
            )

    def step(self):
        """One iteration for each neighbour, and gossip of the vectors."""
        odd = self.number % 2
        products = {}
        for peer in self.peers:
            bases = self.factors[peer][odd]
            for basis in bases:
                _orthogonalize(basis)
            products[peer] = [
                (m if odd else m.T) @ basis
                for m, basis in zip(self.matrices, bases, strict=True)
            ]
        for peer in self.peers:
            mine = _pack(products[peer])
            (theirs,) = _exchange(mine, [peer])
            gap = mine - theirs if self.rank > peer else theirs - mine
            found = self.factors[peer][1 - odd]
            for factor, new in zip(found, _unpack(gap, found), strict=True):
                factor.copy_(new)
        for peer in self.peers:
            sign = -1 if self.rank > peer else 1
            for m, p, q in zip(self.matrices, *self.factors[peer], strict=True):
                m.add_(p @ q.T, alpha=sign * self.weights[peer])
        self.average(self.vectors)
        self.number += 1


def _pack(some: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([x.reshape(-1) for x in some])


def _unpack(buffer: torch.Tensor, like: list[torch.Tensor]) -> list[torch.Tensor]:
    parts = torch.split(buffer, [x.numel() for x in like])
    return [part.view_as(x) for part, x in zip(parts, like, strict=True)]


def _exchange(message: torch.Tensor, peers: list[int]) -> list[torch.Tensor]:
    requests = [dist.isend(message, peer) for peer in peers]
    received = []
    for peer in peers:
        received.append(torch.empty_like(message))
        dist.recv(received[-1], peer)
    for request in requests:
        request.wait()
    return received


def _orthogonalize(columns: torch.Tensor) -> None:
    """Orthogonalizes the columns by Gram-Schmidt, in place."""
    for i in range(columns.shape[1]):
        column = columns[:, i : i + 1]
        column /= column.norm() + 1e-8
        rest = columns[:, i + 1 :]
        rest -= column @ (column.T @ rest)
