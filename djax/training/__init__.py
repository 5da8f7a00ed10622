"""Training: loops over many steps, and the checkpoints of long runs.

:func:`init_workers` and :func:`make_steps` train all local workers for many steps at a
time. A :class:`Checkpointer` saves them, so that a run that was killed goes on.
:mod:`djax.simulation` has the loops under their first name.
"""

from ._checkpoint_files import CheckpointError
from ._checkpoints import Checkpointer, Checkpoints
from ._gradient_fn import GradientFn
from ._nonfinite import NonFiniteError
from ._programs import StepsFn, Workers
from ._steps import init_workers, make_steps

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
__dir__ = __all__.copy  # For dir() and completion.
