"""Asynchronous training, where no worker waits for another: A²CiD² and AD-PSGD.

An asynchronous algorithm is a set of pure functions, one for each kind of event
(:class:`EventTransformation`, made by :func:`djax.acid` and :func:`djax.adpsgd`). It
runs in two ways:

* In real time, every process of an MPI job calls :func:`run`. One thread of the process
  computes gradients while another one averages. The result is an :class:`Outcome`,
  whose :class:`Report` says what all workers did. With :class:`Checkpoints` a run can
  be resumed.
* On virtual clocks, :func:`draw_events` draws when every gradient and averaging
  happens. From these times :func:`simulate` computes the models of all workers exactly,
  on one device.
"""

from djax.training import Checkpoints, NonFiniteError

from .algorithms import (
    AcidConstants,
    AcidState,
    ADPSGDState,
    EventTransformation,
    acid,
    acid_constants,
    adpsgd,
    edge_rates,
)
from .runtime import Outcome, Report, WorkerLost, WorkerSnapshot, run
from .simulator import (
    Events,
    GlobalSchedule,
    Rounds,
    Snapshot,
    draw_events,
    draw_rounds,
    in_global_steps,
    simulate,
)

__all__ = [
    "ADPSGDState",
    "AcidConstants",
    "AcidState",
    "Checkpoints",
    "EventTransformation",
    "Events",
    "GlobalSchedule",
    "NonFiniteError",
    "Outcome",
    "Report",
    "Rounds",
    "Snapshot",
    "WorkerLost",
    "WorkerSnapshot",
    "acid",
    "acid_constants",
    "adpsgd",
    "draw_events",
    "draw_rounds",
    "edge_rates",
    "in_global_steps",
    "run",
    "simulate",
]
__dir__ = __all__.copy  # For dir() and completion.
