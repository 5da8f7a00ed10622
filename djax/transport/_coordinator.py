"""Python objects between the processes of a job that `jax.distributed` has started.

They travel through the store of keys and values of JAX's coordination service, which
needs no devices. Only the processes that take part need to call.
"""

import collections
import itertools
import math
import pickle
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax._src import distributed  # The service's client has no public name.

from ._start import START_TIMEOUT, Absent, seconds_of

_CHUNK = 1 << 20  # Bytes of one value; gRPC refuses values of more than 4 MiB.
_SLICE = 0.5  # Seconds after which Python looks for signals while it waits.
_calls: collections.defaultdict[tuple[int, ...], itertools.count] = (
    collections.defaultdict(itertools.count)
)


def gather_objects(
    processes: Sequence[int], value: Any, what: str | None = None
) -> list[Any]:
    """Collects a Python object of each process, in the order of `processes`.

    All of these processes have to call this function together.

    Args:
      processes: the `jax.process_index()` of each process that takes part.
      value: this process's object, which can be pickled.
      what: what all processes have to do within :data:`START_TIMEOUT`, for the error;
        by default there is no time limit.

    Raises:
      Absent: if `what` is given, and a process does not call in time.
    """
    if len(processes) == 1:
        return [value]
    client: Any = distributed.global_state.client
    number = next(_calls[tuple(processes)])
    place = f"djax/gather/{'_'.join(map(str, processes))}/{number}"
    own, data = f"{place}/{jax.process_index()}", pickle.dumps(value)
    chunks = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
    for i, chunk in enumerate(chunks):
        client.key_value_set_bytes(f"{own}/{i}", chunk)
    client.key_value_set_bytes(f"{own}/count", str(len(chunks)).encode())
    seconds = math.inf if what is None else seconds_of(START_TIMEOUT)
    end, found, absent = time.monotonic() + seconds, [], []
    for process in processes:
        data = _read(client, f"{place}/{process}", end)
        if data is None:
            absent.append(process)
        else:
            found.append(pickle.loads(data))
    if absent:
        raise Absent(str(what), seconds, absent)
    # All processes have come here, and so have read what was gathered before.
    client.key_value_delete(own.replace(f"/{number}/", f"/{number - 1}/") + "/")
    return found


def _read(client: Any, place: str, end: float) -> bytes | None:
    """Returns the bytes that a process has stored, or None if it does not in time."""
    count = _wait_for(client, f"{place}/count", end)
    if count is None:
        return None
    chunks = [_wait_for(client, f"{place}/{i}", math.inf) for i in range(int(count))]
    return b"".join(filter(None, chunks))


def _wait_for(client: Any, key: str, end: float) -> bytes | None:
    while True:
        left = min(_SLICE, max(end - time.monotonic(), 0.001))
        try:
            return client.blocking_key_value_get_bytes(key, math.ceil(1000 * left))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if time.monotonic() > end:
            return None
