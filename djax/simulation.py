"""The loops over many steps of :mod:`djax.training`, under their first name."""

from .training import (
    GradientFn,
    NonFiniteError,
    StepsFn,
    Workers,
    init_workers,
    make_steps,
)

__all__ = [
    "GradientFn",
    "NonFiniteError",
    "StepsFn",
    "Workers",
    "init_workers",
    "make_steps",
]
__dir__ = __all__.copy  # For dir() and completion.
