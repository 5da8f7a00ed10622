"""What the algorithms that average rarely share: their arguments are made to parts."""

import optax

from djax._arguments import check_communicator, check_decay, check_flags, check_rate
from djax._interfaces import Communicator
from djax._mechanism.value import Mechanism
from djax._transformations import as_transformation
from djax.mechanisms import all_reduce

Averaging = Communicator | optax.GradientTransformation


def mechanism_of(name: str, averaging: Averaging) -> optax.GradientTransformation:
    """Returns a mechanism; a communicator stands for the exact average."""
    if isinstance(averaging, optax.GradientTransformation):
        return as_transformation(name, averaging)
    check_communicator(name, averaging)
    return all_reduce(averaging)


def behind(
    name: str, optimizer: optax.GradientTransformation, mechanism: Mechanism
) -> optax.GradientTransformationExtraArgs:
    """Returns a chain of the optimizer of the local steps and a mechanism."""
    return optax.chain(as_transformation(name, optimizer), mechanism)


def outer_sgd(
    name: str, learning_rate: optax.ScalarOrSchedule, momentum: float, nesterov: bool
) -> optax.GradientTransformationExtraArgs:
    """Returns the outer optimizer of most algorithms, after a check of its numbers."""
    if not callable(learning_rate):
        check_rate(f"{name}: outer_learning_rate", learning_rate)
    check_decay(f"{name}: outer_momentum", momentum)
    check_flags(name, nesterov=nesterov)
    return optax.sgd(learning_rate, momentum, nesterov)
