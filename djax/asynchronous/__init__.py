"""Workers that never wait: A²CiD², AD-PSGD, in real time and simulated exactly.

An asynchronous algorithm is a set of pure functions, one for each kind of event
(:class:`EventTransformation`, made by :func:`djax.acid` and :func:`djax.adpsgd`).

* :func:`run` is called by every process of an MPI job: gradients follow each other
  while a second thread averages. It ends with an :class:`Outcome`, whose
  :class:`Report` says what all workers did; :class:`Checkpoints` let it be resumed.
* On virtual clocks what happens when is drawn beforehand (:func:`draw_events`), and
  :func:`simulate` runs it, on one device.
"""

from djax._nonfinite import NonFiniteError as NonFiniteError

from ._acid import AcidState as AcidState
from ._acid import ADPSGDState as ADPSGDState
from ._acid import EventTransformation as EventTransformation
from ._acid import acid as acid
from ._acid import adpsgd as adpsgd
from ._averager import Look as Look
from ._checkpoint import Checkpoints as Checkpoints
from ._clocks import Rounds as Rounds
from ._clocks import draw_events as draw_events
from ._clocks import draw_rounds as draw_rounds
from ._constants import AcidConstants as AcidConstants
from ._constants import acid_constants as acid_constants
from ._constants import edge_rates as edge_rates
from ._events import Events as Events
from ._members import WorkerLost as WorkerLost
from ._report import Report as Report
from ._run import Outcome as Outcome
from ._run import run as run
from ._simulate import GlobalSchedule as GlobalSchedule
from ._simulate import Moment as Moment
from ._simulate import in_global_steps as in_global_steps
from ._simulate import simulate as simulate
