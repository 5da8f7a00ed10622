"""The loops over many steps of :mod:`djax.training`, under their first name."""

from .training import GradientFn as GradientFn
from .training import NonFiniteError as NonFiniteError
from .training import StepsFn as StepsFn
from .training import Workers as Workers
from .training import init_workers as init_workers
from .training import make_steps as make_steps
