"""Two levels of a network: fast links within groups of workers, slow ones between them.

The workers of a communicator form groups of one size. Two communicators speak for them:
one within the groups, and one between the workers that have the same place in their
groups. Both are communicators of the same kind as the one of all workers.
"""

import dataclasses
import functools
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np

from djax._arguments import check_choice, check_communicator
from djax._interfaces import Communicator
from djax._values import check_integer, counted

from ._lossy import LossyCommunicator

By = Literal["node"]


@dataclasses.dataclass(frozen=True)
class Level:
    """Says which workers of a communicator exchange messages with each other.

    All workers are divided into circles of one size. A worker exchanges messages within
    its own circle alone.

    Attributes:
      name: "local" or "across".
      whole: the communicator of all workers.
      circles: the ranks of the workers of each circle, in the order of their ranks
        within the circle.
    """

    name: str
    whole: Any
    circles: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def table(self) -> np.ndarray:
        """`int32[circles, size]`, the ranks of the workers of each circle."""
        return np.array(self.circles, np.int32)

    @functools.cached_property
    def circle_of(self) -> np.ndarray:
        """`int32[workers]`, the number of each worker's circle."""
        return np.argsort(self.table.ravel()).astype(np.int32) // self.table.shape[1]

    @functools.cached_property
    def place_of(self) -> np.ndarray:
        """`int32[workers]`, the rank of each worker within its circle."""
        return np.argsort(self.table.ravel()).astype(np.int32) % self.table.shape[1]

    def lifted(self, source: Any) -> np.ndarray:
        """Turns permutations of a circle into permutations of all workers.

        Args:
          source: `int[..., size]`, the ranks within a circle.

        Returns:
          `int32[..., workers]`, the ranks among all workers.
        """
        return self.table[self.circle_of, np.asarray(source)[..., self.place_of]]


def grouped(
    communicator: Communicator, group_size: int | None = None, *, by: By | None = None
) -> tuple[Communicator, Communicator]:
    """Makes two communicators, one within groups of workers and one between groups.

    Links within a node are many times faster than those between nodes. An algorithm can
    therefore afford an exact average within each node, and needs a cheaper mechanism
    between nodes.

    The first communicator, `local`, has the workers of a group: its `size` is that of a
    group, and its exchanges stay within the groups. The second one, `across`, connects
    the workers that have the same place in their groups: its `size` is the number of
    groups, and graphs for it have a node for each group. All groups and all places
    exchange at the same time.

    **Within programs** the methods of the two speak of these workers alone: `rank` is a
    place within a group, or the number of a group. **Between programs** they speak of
    all workers of the run: `local.spmd`, `across.spmd` and `communicator.spmd` are the
    same, and so are `rows`, `local_ranks` and `gather`. The functions that train,
    evaluate and save workers take any of the three.

    A mechanism over `across` alone would send whole models between groups, one from
    each member. With :func:`djax.sharded`, each member sends a share.

    Args:
      communicator: the communicator of all workers, made by :func:`simulated`,
        :func:`mesh` or :func:`mpi`. Its `message_dtype` and `rounding_seed` hold for
        both levels.
      group_size: the number of workers of a group, which divides the number of all
        workers. The first `group_size` ranks are the first group, and so on.
      by: `"node"` lets the workers of each host form a group. Over MPI, these are the
        ranks that can share memory; on a mesh, those whose processes run on the same
        host.

    Returns:
      `(local, across)`. :func:`djax.communication_cost` counts their messages under
      these names.

    Raises:
      TypeError: if `communicator` is not a communicator of one of the three kinds.
      ValueError: if not exactly one of `group_size` and `by` is given; if the workers
        cannot be divided into groups of one size; if `by="node"` is asked of a
        simulation, which has no hosts; if the communicator loses messages, or is
        itself a level of another one.

    Examples:
      >>> import djax, optax
      >>> workers = djax.communicators.simulated(8)
      >>> local, across = djax.communicators.grouped(workers, 4)
      >>> local.size, across.size
      (4, 2)
      >>> pair = djax.topologies.ring(2)
      >>> optimizer = optax.chain(
      ...     djax.on_updates(djax.all_reduce(local)),
      ...     optax.sgd(0.1),
      ...     djax.sharded(djax.gossip(pair, across), local),
      ... )
    """
    check_communicator("grouped", communicator)
    _check_whole(communicator)
    made: Any = communicator
    if (group_size is None) == (by is None):
        raise ValueError(
            'grouped needs either a group_size, as in grouped(communicator, 4), or by="'
            f'node"; got group_size={group_size!r} and by={by!r}.'
        )
    if group_size is not None:
        groups = _contiguous(communicator.size, group_size)
    else:
        check_choice("grouped: by", by, By)
        groups = _of_hosts(made.hosts())
    levels = {"local": groups, "across": list(zip(*groups, strict=True))}
    local, across = (
        made.at_level(Level(name, communicator, tuple(map(tuple, circles))))
        for name, circles in levels.items()
    )
    return local, across


def _check_whole(communicator: Any) -> None:
    """Raises unless workers of a communicator can be put into groups."""
    if isinstance(communicator, LossyCommunicator):
        raise ValueError(
            f"grouped: {communicator!r} loses messages, on links between single "
            "workers. Group first, then lose: local, across = grouped(...) and "
            "across = lossy(across, 0.1)."
        )
    if not hasattr(communicator, "at_level"):
        raise TypeError(
            "grouped takes what communicators.simulated, mesh or mpi returns, got "
            f"{communicator!r}."
        )
    if communicator.level is not None:
        raise ValueError(
            f"grouped: {communicator!r} is one level of groups already; group the "
            "communicator of all workers."
        )


def _contiguous(size: int, group_size: Any) -> list[Sequence[int]]:
    """Lists groups of neighbouring ranks."""
    group_size = check_integer(group_size, "grouped: group_size")
    if size % group_size:
        divisors = [str(n) for n in range(1, size + 1) if size % n == 0]
        raise ValueError(
            f"grouped: {size} workers cannot be divided into groups of {group_size}; "
            f"group_size must be one of {', '.join(divisors)}."
        )
    ranks = range(size)
    return [ranks[first : first + group_size] for first in ranks[::group_size]]


def _of_hosts(hosts: Sequence[tuple[str, Hashable]]) -> list[Sequence[int]]:
    """Lists the ranks of each host, or raises ValueError if their numbers differ.

    Args:
      hosts: for each worker the name of its host, and what tells hosts of one name
        apart.
    """
    ranks: dict[Any, list[int]] = {}
    for rank, host in enumerate(hosts):
        ranks.setdefault(host, []).append(rank)
    if len({len(each) for each in ranks.values()}) > 1:
        counts = [
            f"{name} has {counted(len(each), 'worker')}"
            for (name, _), each in ranks.items()
        ]
        more = f", and {len(counts) - 8} others" if len(counts) > 8 else ""
        raise ValueError(
            f"grouped: hosts have different numbers of workers: "
            f"{', '.join(counts[:8])}{more}. Start the same number on each host, or "
            "pass a group_size that divides the number of all workers."
        )
    return list(ranks.values())
