"""The end of an asynchronous run, after which all workers have the same result.

When all workers are done, the worker with the lowest rank, the root, collects all
models and records. It sends the mean of the models and all records to every worker. No
worker leaves before all workers have this result. If the root is lost meanwhile, the
worker with the next rank becomes the root and collects anew.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from djax.transport import Packing

from ._members import Members, Say
from ._record import Record

_PARTS = len(Record.NAMES)


class Result(NamedTuple):
    """The result of a run, which is the same on all workers.

    Attributes:
      mean: the packed mean of the finite models, or of all models if none is finite.
      records: the records of the workers that are not lost, by rank.
    """

    mean: list[np.ndarray]
    records: dict[int, dict[str, np.ndarray]]


class Ending:
    """One worker's part in the end of a run.

    Args:
      members: this worker's view of all workers.
      own: returns this worker's packed model and packed record, as arrays of bytes.
      packing: how models are packed into messages.
    """

    def __init__(
        self, members: Members, own: Callable[[], list[np.ndarray]], packing: Packing
    ):
        """Starts with nothing collected."""
        self._members, self._make_own, self._packing = members, own, packing
        self._own: list[np.ndarray] | None = None
        self._collected: dict[int, tuple[int, list[np.ndarray]]] = {}
        self._sent_to: int | None = None
        self._result: tuple[int, Result] | None = None
        self._byes: dict[int, int] = {}

    @property
    def result(self) -> Result:
        """The result, once `advance` has returned True."""
        assert self._result is not None
        return self._result[1]

    def hear(
        self, sender: int, kind: Say, content: list, buffers: list[np.ndarray]
    ) -> None:
        """Takes in a message of the ending; its content starts with the root's rank."""
        root = content[0]
        if kind == Say.RESULT:
            self._collected[sender] = root, buffers
        elif kind == Say.MEAN:
            count = len(self._packing.layout)
            mean = self._packing.view(buffers[:count])
            rest, records = buffers[count:], {}
            for number, rank in enumerate(content[1]):
                part = rest[number * _PARTS : (number + 1) * _PARTS]
                records[rank] = Record.unpack(part)
            self._result = root, Result(mean, records)
        else:
            self._byes[sender] = root

    def advance(self) -> bool:
        """Takes the steps that are possible; returns whether all have the result."""
        members, root = self._members, self._members.alive[0]
        if self._own is None:
            self._own = self._make_own()
        if self._sent_to != root:
            self._sent_to = root
            if root == members.rank:
                self._collected[root] = root, self._own
            else:
                members.say(root, Say.RESULT, root, buffers=self._own)
        if root == members.rank and (self._result is None or self._result[0] != root):
            self._collect(root)
        if self._result is None:
            return False
        # The result may come from a root that was lost afterwards. It is valid if all
        # workers have the result of that root.
        source = self._result[0]
        if source == root and self._byes.get(members.rank) != root:
            self._byes[members.rank] = root
            members.say(None, Say.BYE, root)
        return all(self._byes.get(rank) == source for rank in members.alive)

    def _collect(self, root: int) -> None:
        """Computes and sends the mean, once all models have arrived."""
        ranks = self._members.alive
        if any(self._collected.get(rank, (None,))[0] != root for rank in ranks):
            return
        everything = [self._collected[rank][1] for rank in ranks]
        count = len(self._packing.layout)
        finite = [
            buffers
            for buffers in everything
            if Record.unpack(buffers[count:])["finite"].all()
        ]
        mean = [
            _mean([buffers[k] for buffers in finite or everything], dtype)
            for k, (_, dtype) in enumerate(self._packing.layout)
        ]
        records = [part for buffers in everything for part in buffers[count:]]
        self._members.say(None, Say.MEAN, root, ranks, buffers=[*mean, *records])
        self.hear(root, Say.MEAN, [root, ranks], [*mean, *records])


def _mean(buffers: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    total_dtype = np.promote_types(dtype, np.float32)
    total = buffers[0].view(dtype).astype(total_dtype)
    for buffer in buffers[1:]:
        total += buffer.view(dtype)
    return (total / len(buffers)).astype(dtype).view(np.uint8)
