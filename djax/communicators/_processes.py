"""Python objects between the processes of a job that `jax.distributed` has started.

They travel through the store of keys and values of JAX's coordination service, which
needs no devices. Only the processes that take part need to call.
"""

import collections
import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import jax
from jax._src import distributed  # The service's client has no public name.

_CHUNK = 1 << 20  # Bytes of one value; gRPC refuses values of more than 4 MiB.
_SLICE = 1000  # Milliseconds after which Python looks for signals while it waits.
_calls: collections.defaultdict[tuple[int, ...], itertools.count] = (
    collections.defaultdict(itertools.count)
)


def gather(processes: Sequence[int], value: Any) -> list[Any]:
    """Collects a Python object of each process, in the order of `processes`.

    All of these processes have to call this function together.

    Args:
      processes: the `jax.process_index()` of each process that takes part.
      value: this process's object, which can be pickled.
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
    found = [_read(client, f"{place}/{process}") for process in processes]
    # All processes have come here, and so have read what was gathered before.
    client.key_value_delete(own.replace(f"/{number}/", f"/{number - 1}/") + "/")
    return found


def _read(client: Any, place: str) -> Any:
    count = int(_wait_for(client, f"{place}/count"))
    chunks = [_wait_for(client, f"{place}/{i}") for i in range(count)]
    return pickle.loads(b"".join(chunks))


def _wait_for(client: Any, key: str) -> bytes:
    while True:
        try:
            return client.blocking_key_value_get_bytes(key, _SLICE)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
