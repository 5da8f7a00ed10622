"""Asynchronous algorithms in real time, with one process for each worker.

Reading order: :func:`run` starts a worker, whose main thread computes gradients
(`_worker`, `_gradient`) while the averaging thread (`_averager`, `_averagings`) finds
partners (`_pairing`, `_policies`) and exchanges models (`_model`) until the run ends
(`_ending`). What happened is noted (`_record`) and becomes a :class:`Report`.
"""

from ._averager import WorkerSnapshot as WorkerSnapshot
from ._members import WorkerLost as WorkerLost
from ._report import Report as Report
from ._run import Outcome as Outcome
from ._run import run as run
