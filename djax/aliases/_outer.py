"""What the algorithms that average rarely share: their arguments are made to parts."""

import warnings

import optax

from djax._arguments import check_communicator, check_decay, check_flags, check_rate
from djax._interfaces import Communicator
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation
from djax._values import is_number
from djax.mechanisms import all_reduce

LARGEST_MOMENTUM = 0.5
"""The largest outer momentum with which compressed messages are known to work."""

Averaging = Communicator | optax.GradientTransformation


def mechanism_of(
    name: str, averaging: Averaging, momentum: float
) -> optax.GradientTransformation:
    """Returns a mechanism; a communicator stands for the exact average.

    Args:
      name: the name of the algorithm, for errors and warnings.
      averaging: a communicator or a mechanism.
      momentum: the outer momentum, about which a compressing mechanism warns.
    """
    if isinstance(averaging, optax.GradientTransformation):
        _warn_of_momentum(name, averaging, momentum)
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


def _warn_of_momentum(
    name: str, mechanism: optax.GradientTransformation, momentum: float
) -> None:
    """Warns if compressed messages do not bear the outer momentum.

    What a compressed average leaves out changes from one averaging to the next. A large
    momentum adds this up, and the models of the workers move away from each other.
    """
    compressing = [p.name for p in parts_of(mechanism) if p.facts.get("compresses")]
    if compressing and is_number(momentum) and momentum > LARGEST_MOMENTUM:
        warnings.warn(
            f"{name}: with the compressed messages of {compressing[0]}, the models of "
            f"the workers may move apart at an outer_momentum of {momentum:g}; at most "
            f"{LARGEST_MOMENTUM:g} was safe in our tests.",
            stacklevel=4,
        )
