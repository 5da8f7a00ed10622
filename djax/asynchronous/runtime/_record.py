"""What a worker notes of its run."""

import array
import time
from collections.abc import Sequence

import numpy as np


class Record:
    """One worker's gradients, averagings and looks; times in seconds of the run.

    Args:
      before: gradients of earlier runs, which this one goes on from.

    Attributes:
      origin: `time.perf_counter()` when the run began.
      before: `int32[1]`, as given.
      gradients: `float64[gradients, 2]`, begin and end of each.
      staleness: `int32[gradients]`, averagings between the two.
      averagings: `float64[averagings, 2]`, likewise.
      peers: `int32[averagings]`, with whom.
      looks: `float64[looks]`, when the model was compared.
      look_numbers: `int32[looks]`, which of the looks that were asked for, from 1 on.
      sketches: `float32[looks, k]`, what was compared.
      nonfinite: `int32[]`, numbers of the gradients that were not finite, or led to a
        model that is not, from 1 on.
      finite: `int32[1]`, whether the model is finite in the end.
    """

    NAMES = (
        "before",
        "gradients",
        "staleness",
        "averagings",
        "peers",
        "looks",
        "look_numbers",
        "sketches",
        "nonfinite",
        "finite",
    )
    _TYPES = ("i4", "f8", "i4", "f8", "i4", "f8", "i4", "f4", "i4", "i4")

    def __init__(self, before: int = 0):
        """Nothing has happened."""
        self.origin = time.perf_counter()
        self._parts = {
            "before": array.array("i", [before]),
            "gradients": array.array("d"),
            "staleness": array.array("i"),
            "averagings": array.array("d"),
            "peers": array.array("i"),
            "looks": array.array("d"),
            "look_numbers": array.array("i"),
            "nonfinite": array.array("i"),
            "finite": array.array("i", [1]),
        }
        self._sketches: list[np.ndarray] = []

    def now(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.origin

    def gradient(self, begin: float, staleness: int) -> None:
        """A gradient has been applied, that many averagings after its model."""
        self._parts["gradients"].extend((begin, self.now()))
        self._parts["staleness"].append(staleness)

    def not_finite(self, number: int) -> None:
        """That gradient was not finite, or the model that it led to."""
        self._parts["nonfinite"].append(number)

    def end(self, finite: bool) -> None:
        """The run is over, with a model that is finite or not."""
        self._parts["finite"][0] = finite

    def averaging(self, peer: int, begin: float) -> None:
        """An averaging has been made."""
        self._parts["averagings"].extend((begin, self.now()))
        self._parts["peers"].append(peer)

    def look(self, number: int, sketch: np.ndarray) -> None:
        """The model has been looked at."""
        self._parts["looks"].append(self.now())
        self._parts["look_numbers"].append(number)
        self._sketches.append(sketch)

    def pack(self) -> list[np.ndarray]:
        """As arrays of bytes, one for each of `NAMES`."""
        parts = {**self._parts, "sketches": np.asarray(self._sketches, np.float32)}
        return [
            np.array(parts[name], dtype).reshape(-1).view("u1")
            for name, dtype in zip(self.NAMES, self._TYPES, strict=True)
        ]

    @classmethod
    def unpack(cls, buffers: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of `NAMES`, of what another worker has packed."""
        arrays = {
            name: np.array(buffer).view(dtype)
            for name, dtype, buffer in zip(cls.NAMES, cls._TYPES, buffers, strict=True)
        }
        for name in ("gradients", "averagings"):
            arrays[name] = arrays[name].reshape(-1, 2)
        looks = len(arrays["looks"])
        length = arrays["sketches"].size // max(1, looks)
        arrays["sketches"] = arrays["sketches"].reshape(looks, length)
        return arrays
