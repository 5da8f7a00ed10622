"""Training: loops over many steps, and the checkpoints of long runs.

:func:`init_workers` and :func:`make_steps` train all local workers for many steps at a
time. A :class:`Checkpointer` saves the workers, so that a run that was killed can be
resumed. In a loop of your own, :func:`apply_gradients` makes a worker's step.
:mod:`djax.simulation` offers the first two functions under an earlier name.
"""

# Names that are imported with `as` are for other packages of djax, not for users.
from djax._mechanism.apply import apply_gradients

from ._checkpoint_files import CheckpointError
from ._checkpoint_files import from_numpy as from_numpy
from ._checkpoint_files import to_numpy as to_numpy
from ._checkpoints import Checkpointer, Checkpoints
from ._gradient_fn import GradientFn
from ._gradient_fn import check_gradient_fn as check_gradient_fn
from ._gradient_fn import check_gradients as check_gradients
from ._nonfinite import NonFinite, NonFiniteError
from ._programs import StepsFn, Workers
from ._steps import init_workers, make_steps

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Checkpoints",
    "GradientFn",
    "NonFinite",
    "NonFiniteError",
    "StepsFn",
    "Workers",
    "apply_gradients",
    "init_workers",
    "make_steps",
]
__dir__ = __all__.copy  # For dir() and completion.
