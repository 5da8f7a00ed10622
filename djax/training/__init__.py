"""Training: loops over many steps, and the checkpoints of long runs."""

from ._checkpoints import CheckpointError as CheckpointError
from ._checkpoints import Folder as Folder
from ._checkpoints import Saved as Saved
from ._checkpoints import Steps as Steps
from ._gradient_fn import GradientFn as GradientFn
from ._nonfinite import NonFiniteError as NonFiniteError
from ._steps import StepsFn as StepsFn
from ._steps import Workers as Workers
from ._steps import init_workers as init_workers
from ._steps import make_steps as make_steps
