"""Training: loops over many steps, and the checkpoints of long runs.

:func:`init_workers` and :func:`make_steps` train all local workers for many steps at a
time. A :class:`Checkpointer` saves them, so that a run that was killed goes on.
:mod:`djax.simulation` has the loops under their first name.
"""

from ._checkpoint_files import CheckpointError as CheckpointError
from ._checkpoints import Checkpointer as Checkpointer
from ._checkpoints import Checkpoints as Checkpoints
from ._gradient_fn import GradientFn as GradientFn
from ._nonfinite import NonFiniteError as NonFiniteError
from ._programs import StepsFn as StepsFn
from ._programs import Workers as Workers
from ._steps import init_workers as init_workers
from ._steps import make_steps as make_steps

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Checkpoints",
    "GradientFn",
    "NonFiniteError",
    "StepsFn",
    "Workers",
    "init_workers",
    "make_steps",
]
