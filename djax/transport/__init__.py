"""How processes find each other, exchange bytes, and end.

:mod:`djax.communicators` and :mod:`djax.asynchronous` are built on it. The parts are

* the start and the end of a process in an MPI job, both in bounded time
  (:func:`start_mpi`, :func:`meet`, :func:`end_together`, :func:`leave_alone`,
  :func:`end_now`),
* the share of a node that each of its ranks gets (:func:`share_node`),
* the packing of trees of arrays into messages (:class:`Packing`, :func:`exchange`),
* messages between any two workers of an asynchronous run (:class:`Transport`), over MPI
  or over sockets.
"""

from ._end import GUARD as GUARD
from ._end import end_now as end_now
from ._end import end_on_exceptions as end_on_exceptions
from ._end import end_together as end_together
from ._end import leave_alone as leave_alone
from ._interface import Array as Array
from ._interface import Message as Message
from ._interface import Transport as Transport
from ._launch import check_launcher as check_launcher
from ._launch import launcher_rank as launcher_rank
from ._launch import launcher_size as launcher_size
from ._launch import share_node as share_node
from ._mpi import MPITransport as MPITransport
from ._packing import Packing as Packing
from ._packing import as_bytes as as_bytes
from ._packing import count_bytes as count_bytes
from ._packing import count_messages as count_messages
from ._packing import exchange as exchange
from ._start import Absent as Absent
from ._start import meet as meet
from ._start import start_mpi as start_mpi
from ._zmq import ZMQTransport as ZMQTransport

TRANSPORTS = {"mpi": MPITransport, "zmq": ZMQTransport}
"""The transports by the names that :func:`djax.asynchronous.run` gives them."""
