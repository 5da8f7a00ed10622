"""Defines what all kinds of training have in common.

A training runs in steps, on virtual clocks, or in real time. For
:mod:`experiments.train` each is a :class:`Job`.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax

import djax

from .divergence import Diverged as Diverged
from .report import RunFolder
from .signals import Stopped as Stopped
from .tasks import Task

Record = dict[str, Any]
Records = Generator[Record, None, None]
Rows = list[tuple[str, str]]

CHUNK_BYTES, CHUNK_STEPS = 64 * 2**20, 500
"""The most bytes, and the most steps, of batches that are loaded together."""


@dataclasses.dataclass
class Job(abc.ABC):
    """A training that is ready to start, the base class of all kinds.

    A record has `epoch` and `step` (means over the workers), `loss` (the mean training
    loss of the last epoch), what :func:`experiments.lib.evaluation.make_assess`
    measures, `megabytes` (sent by a worker so far, on average), the virtual or real
    `time` if there are clocks, and `seconds` since the start. Records of the last part
    of a run that has lost workers lack what only all workers together can know.

    Attributes:
      params: initial parameters, with a leading axis of local workers.
      workers: the local :class:`djax.simulation.Workers`; None before the end.
      history: a record for each evaluation so far.
      unsaved: reasons why checkpoints could not be written, from all processes.
    """

    task: Task
    communicator: djax.Communicator
    params: Any
    workers: Any = dataclasses.field(init=False, default=None)
    history: list[Record] = dataclasses.field(init=False, default_factory=list)
    unsaved: Sequence[str] = dataclasses.field(init=False, default=())

    @property
    def ranks(self) -> Sequence[int]:
        """The ranks that were not lost; known once there is a record."""
        return range(self.communicator.size)

    @property
    def reported(self) -> bool:
        """Whether a run that a signal has cut off knows what it did until then.

        If so, `traffic`, `describe` and `save` can be called.
        """
        return False

    @abc.abstractmethod
    def train(self, evaluations: int, advance: Callable[[float], object]) -> Records:
        """Trains the local workers, and yields each record of the history.

        The last of the `evaluations`, which are evenly spread, is at the end. `advance`
        is called with the number of epochs since its last call.

        Raises:
          Diverged: on every process alike, if a loss is not finite, or if the losses
            were far above their start and have not come back by the end.
          Stopped: on every process alike, after SIGTERM or Ctrl-C.
          CheckpointError: on every process alike, if a checkpoint does not fit.
        """

    @abc.abstractmethod
    def traffic(self) -> dict[str, float]:
        """Returns, by name, what a worker has sent: the mean and the largest value."""

    def describe(self) -> Rows:
        """Returns rows of the final table that depend on the kind of training."""
        sent = self.traffic()
        told = f"{sent['megabytes_mean']:.5g} ({sent['megabytes_largest']:.5g})"
        return [("MB sent per worker, mean (largest)", told)]

    def save(self, folder: RunFolder, title: str) -> None:  # noqa: B027
        """Saves pictures that only this kind of training has."""


def chunk_steps(task: Task) -> int:
    """Returns the number of steps whose batches are loaded together.

    If possible, this number divides the steps of an epoch, since chunks of two sizes
    would have to be compiled twice.
    """
    size = sum(x.nbytes for x in jax.tree.leaves(task.batches(0, 1)))
    most = min(CHUNK_STEPS, max(1, CHUNK_BYTES // max(1, size)))
    whole = task.steps_per_epoch
    fewest = math.ceil(whole / most)
    equal = (n for n in range(fewest, 2 * fewest + 1) if whole % n == 0)
    return math.ceil(whole / next(equal, fewest))
