"""Workers that never wait: A²CiD², AD-PSGD, in real time and simulated exactly.

An asynchronous algorithm is a set of pure functions, one for each kind of event
(:class:`EventTransformation`, made by :func:`djax.acid` and :func:`djax.adpsgd`).

* :func:`run` is called by every process of an MPI job: gradients follow each other
  while a second thread averages. It ends with an :class:`Outcome`, whose
  :class:`Report` says what all workers did; :class:`Checkpoints` let it be resumed.
* On virtual clocks what happens when is drawn beforehand (:func:`draw_events`), and
  :func:`simulate` runs it, on one device.
"""

from djax.training._checkpoints import Checkpoints as Checkpoints
from djax.training._nonfinite import NonFiniteError as NonFiniteError

from .algorithms._acid import AcidState as AcidState
from .algorithms._acid import ADPSGDState as ADPSGDState
from .algorithms._acid import EventTransformation as EventTransformation
from .algorithms._acid import acid as acid
from .algorithms._acid import adpsgd as adpsgd
from .algorithms._constants import AcidConstants as AcidConstants
from .algorithms._constants import acid_constants as acid_constants
from .algorithms._constants import edge_rates as edge_rates
from .runtime._averager import Look as Look
from .runtime._members import WorkerLost as WorkerLost
from .runtime._report import Report as Report
from .runtime._run import Outcome as Outcome
from .runtime._run import run as run
from .simulator._clocks import Rounds as Rounds
from .simulator._clocks import draw_events as draw_events
from .simulator._clocks import draw_rounds as draw_rounds
from .simulator._events import Events as Events
from .simulator._simulate import GlobalSchedule as GlobalSchedule
from .simulator._simulate import Moment as Moment
from .simulator._simulate import in_global_steps as in_global_steps
from .simulator._simulate import simulate as simulate

__all__ = [
    "ADPSGDState",
    "AcidConstants",
    "AcidState",
    "Checkpoints",
    "EventTransformation",
    "Events",
    "GlobalSchedule",
    "Look",
    "Moment",
    "NonFiniteError",
    "Outcome",
    "Report",
    "Rounds",
    "WorkerLost",
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
