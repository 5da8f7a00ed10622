"""Asynchronous algorithms on virtual clocks, simulated exactly on one device.

Reading order: the times of all gradients and averagings are drawn first (`_clocks`,
`_rounds`, `_durations`). They make up a list of events (`_events`). The list is divided
into waves (`_waves`), sets of events that can be computed at the same time. A
simulation (`_simulate`) runs the waves as compiled programs (`_programs`, `_rows`).
"""

from ._batches import OwnBatches as OwnBatches
from ._clocks import draw_events as draw_events
from ._events import NOBODY as NOBODY
from ._events import Events as Events
from ._rounds import Rounds as Rounds
from ._rounds import draw_rounds as draw_rounds
from ._schedule import GlobalSchedule as GlobalSchedule
from ._schedule import in_global_steps as in_global_steps
from ._simulate import Snapshot as Snapshot
from ._simulate import simulate as simulate
