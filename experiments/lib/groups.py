"""Groups of workers, which average exactly within a group and less often between."""

import dataclasses
from typing import Literal, NamedTuple

import djax
from djax import communicators

from .errors import UsageError


@dataclasses.dataclass(frozen=True)
class Groups:
    """Which workers form a group, such as those of a node."""

    group_size: int | Literal["node"] | None = None
    """Number of workers of a group, or node for the workers of each host. The workers
    of a group average their gradients in each step and stay equal; the algorithm and
    its --topology are those between groups, where each worker sends its share of the
    model. Without it there are no groups."""
    local: Literal["all_reduce"] = "all_reduce"
    """How the workers of a group average their gradients."""


NO_GROUPS = Groups()


class Levels(NamedTuple):
    """The communicators of a run.

    Attributes:
      whole: connects all workers.
      across: connects workers for the algorithm; with groups those of different groups.
      local: connects the workers of a group; None without groups.
    """

    whole: djax.Communicator
    across: djax.Communicator
    local: djax.Communicator | None = None


def make_levels(groups: Groups, whole: djax.Communicator) -> Levels:
    """Groups the workers of a communicator, if the options ask for it."""
    if groups.group_size is None:
        return Levels(whole, whole)
    try:
        if groups.group_size == "node":
            local, across = communicators.grouped(whole, by="node")
        else:
            local, across = communicators.grouped(whole, groups.group_size)
    except ValueError as error:
        raise UsageError(f"--group-size {groups.group_size}: {error}") from None
    return Levels(whole, across, local)
