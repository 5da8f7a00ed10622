"""What a worker notes during a run, for the report at its end."""

import array
import time
from collections.abc import Sequence

import numpy as np


class Record:
    """One worker's gradients, averagings and snapshots.

    A record is a list of named arrays; all times are seconds since the run began.

    * `before`: `int32[1]`, number of gradients of earlier runs that this one resumes.
    * `gradients`: `float64[gradients, 2]`, when each gradient began and ended.
    * `staleness`: `int32[gradients]`, number of averagings between these two times.
    * `averagings`: `float64[averagings, 2]`, when each averaging began and ended.
    * `peers`: `int32[averagings]`, the neighbours of the averagings.
    * `snapshots`: `float64[snapshots]`, when snapshots were taken.
    * `snapshot_numbers`: `int32[snapshots]`, their numbers among those requested.
    * `sketches`: `float32[snapshots, k]`, the sketches of the models.
    * `nonfinite`: `int32[...]`, numbers, from 1 on, of the gradients that were not
      finite or led to a model that was not finite.
    * `finite`: `int32[1]`, whether the model is finite in the end.

    Args:
      before: number of gradients of earlier runs.

    Attributes:
      origin: `time.perf_counter()` when the run began.
    """

    # The codes are those of the module `array`, which NumPy shares.
    _TYPES = {
        "before": "i",
        "gradients": "d",
        "staleness": "i",
        "averagings": "d",
        "peers": "i",
        "snapshots": "d",
        "snapshot_numbers": "i",
        "sketches": "f",
        "nonfinite": "i",
        "finite": "i",
    }
    NAMES = tuple(_TYPES)

    def __init__(self, before: int = 0):
        """Starts an empty record."""
        self.origin = time.perf_counter()
        self._parts = {name: array.array(code) for name, code in self._TYPES.items()}
        self._parts["before"].append(before)
        self._parts["finite"].append(1)

    def now(self) -> float:
        """Returns the seconds since the run began."""
        return time.perf_counter() - self.origin

    def gradient(self, begin: float, staleness: int) -> None:
        """Notes a gradient that began at `begin` and ends now, and its staleness."""
        self._parts["gradients"].extend((begin, self.now()))
        self._parts["staleness"].append(staleness)

    def not_finite(self, number: int) -> None:
        """Notes that a gradient, or the model that it led to, was not finite."""
        self._parts["nonfinite"].append(number)

    def end(self, finite: bool) -> None:
        """Notes whether the model is finite in the end."""
        self._parts["finite"][0] = finite

    def averaging(self, peer: int, begin: float) -> None:
        """Notes an averaging that began at `begin` and ends now."""
        self._parts["averagings"].extend((begin, self.now()))
        self._parts["peers"].append(peer)

    def snapshot(self, number: int, sketch: np.ndarray) -> None:
        """Notes the time, the number and the model's sketch of a snapshot."""
        self._parts["snapshots"].append(self.now())
        self._parts["snapshot_numbers"].append(number)
        self._parts["sketches"].extend(sketch.tolist())

    def pack(self) -> list[np.ndarray]:
        """Returns the record as `uint8[bytes]` arrays, one for each of `NAMES`."""
        return [
            np.array(self._parts[name], dtype).view("u1")
            for name, dtype in self._TYPES.items()
        ]

    @classmethod
    def unpack(cls, buffers: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Inverts `pack`: returns the arrays of a record by name."""
        arrays = {
            name: np.array(buffer).view(dtype)
            for (name, dtype), buffer in zip(cls._TYPES.items(), buffers, strict=True)
        }
        for name in ("gradients", "averagings"):
            arrays[name] = arrays[name].reshape(-1, 2)
        snapshots = len(arrays["snapshots"])
        length = arrays["sketches"].size // max(1, snapshots)
        arrays["sketches"] = arrays["sketches"].reshape(snapshots, length)
        return arrays
