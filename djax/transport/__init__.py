"""How processes find each other, exchange bytes, and end.

:mod:`djax.communicators` and :mod:`djax.asynchronous` are built on this package. It has
five parts:

* A process starts in an MPI job, and leaves it, in bounded time (:func:`start_mpi`,
  :func:`meet`, :func:`end_together`, :func:`leave_alone`, :func:`end_now`).
* A process that waits for others says for whom, and where its program stands
  (:func:`watchdog`, :func:`watch_results`).
* Each rank gets its share of the node on which it runs (:func:`share_node`).
* Trees of arrays are packed into messages (:class:`Packing`, :func:`exchange`).
* Any two workers of an asynchronous run exchange messages (:class:`Transport`), over
  MPI or over sockets.
"""

from ._coordinator import gather_objects
from ._end import (
    GUARD,
    before_the_end,
    end_now,
    end_on_exceptions,
    end_together,
    leave_alone,
)
from ._interface import Array, Message, Transport
from ._launch import (
    check_launcher,
    launch_command,
    launcher_rank,
    launcher_size,
    share_node,
)
from ._mpi import MPITransport
from ._packing import Packing, aligned, as_bytes, count_bytes, count_messages, exchange
from ._processes import (
    end_processes_together,
    process_number,
    processes_come,
    start_processes,
)
from ._standing import watch_results, watchdog_seconds
from ._start import Absent, meet, start_mpi
from ._watch import say
from ._watchdog import Watchdog, watchdog
from ._zmq import ZMQTransport

__all__ = [
    "GUARD",
    "TRANSPORTS",
    "Absent",
    "Array",
    "MPITransport",
    "Message",
    "Packing",
    "Transport",
    "Watchdog",
    "ZMQTransport",
    "aligned",
    "as_bytes",
    "before_the_end",
    "check_launcher",
    "count_bytes",
    "count_messages",
    "end_now",
    "end_on_exceptions",
    "end_processes_together",
    "end_together",
    "exchange",
    "gather_objects",
    "launch_command",
    "launcher_rank",
    "launcher_size",
    "leave_alone",
    "meet",
    "process_number",
    "processes_come",
    "say",
    "share_node",
    "start_mpi",
    "start_processes",
    "watch_results",
    "watchdog",
    "watchdog_seconds",
]
__dir__ = __all__.copy  # For dir() and completion.

TRANSPORTS = {"mpi": MPITransport, "zmq": ZMQTransport}
"""The transports by the names that :func:`djax.asynchronous.run` gives them."""
