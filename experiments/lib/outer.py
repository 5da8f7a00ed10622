"""Puts an outer optimizer between the local steps and the averagings.

Workers on slow networks average rarely, and then step by a second optimizer along what
all of them have learnt. These algorithms combine any base optimizer with the averaging
of any algorithm of :mod:`experiments.lib.algorithms` that averages models.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal

import optax

import djax

from .errors import UsageError
from .optimizers import BaseOptimizer, learning_rate_schedule, make_base
from .options import changed, write_flags
from .ranges import flag


@dataclasses.dataclass(frozen=True)
class Outer:
    """How workers that average rarely step along what all have learnt."""

    outer: Literal["diloco", "streaming_diloco", "slowmo", "noloco"] | None = None
    """Average after --outer-period local steps only, by the averaging of --algorithm,
    and take what was learnt meanwhile as the gradient of an outer optimizer: diloco
    (Nesterov momentum), streaming_diloco (fragments of the model one after the other,
    applied --delay steps after they were sent), slowmo (heavy-ball momentum in the unit
    of gradients) or noloco (heavy-ball momentum; meant for --algorithm dpsgd with
    --topology random_matchings). The options below have its paper's values by default.
    """
    outer_period: int | None = None
    """Number of local steps between two outer steps. With fragments, each of them is
    averaged once in this time."""
    outer_learning_rate: float | None = None
    """Step size of the outer optimizer."""
    outer_momentum: float | None = None
    """Momentum of the outer optimizer."""
    outer_nesterov: bool = True
    """Whether the outer momentum of diloco and streaming_diloco is Nesterov's."""
    fragments: int | None = None
    """Number of fragments of streaming_diloco, each of which consists of leaves of the
    model."""
    delay: int | None = None
    """Number of local steps of streaming_diloco between sending a fragment and its
    outer step."""
    blend: float | None = None
    """Weight of the outer model of streaming_diloco, against what the worker has learnt
    since the fragment was sent."""
    base_state: Literal["keep", "reset", "average"] | None = None
    """What an outer step of slowmo does to the state of the base optimizer."""


NO_OUTER = Outer()
"""Options without an outer optimizer, which are the defaults."""


def _noloco(
    optimizer: optax.GradientTransformation,
    averaging: optax.GradientTransformation,
    *,
    period: int = 50,
    outer_learning_rate: float = 0.7,
    outer_momentum: float = 0.5,
) -> optax.GradientTransformation:
    """Makes :func:`djax.noloco` over any mechanism: pairs come from the topology."""
    return djax.diloco(
        optimizer,
        averaging,
        period=period,
        outer_learning_rate=outer_learning_rate,
        outer_momentum=outer_momentum,
        nesterov=False,
    )


OUTER: dict[str, Callable[..., optax.GradientTransformation]] = {
    "diloco": djax.diloco,
    "streaming_diloco": djax.streaming_diloco,
    "slowmo": djax.slowmo,
    "noloco": _noloco,
}
"""The functions behind the choices of `--outer`."""
_ARGUMENTS = {"outer_period": "period", "outer_nesterov": "nesterov"}
"""Options whose names differ from those of the functions' arguments."""


def check_outer(config: Outer) -> None:
    """Raises UsageError if the outer optimizer would ignore an option."""
    given = {name: value for name, value in changed(config).items() if name != "outer"}
    for name, value in given.items():
        (option,) = write_flags({name: value})[:1]
        if config.outer is None:
            raise UsageError(
                f"{option} needs an outer optimizer, as in --outer diloco."
            )
        known = [flag(name) for name in _options(config.outer)]
        if flag(name) not in known:
            raise UsageError(
                f"--outer {config.outer} has no option {option}, only "
                f"{', '.join(known)}."
            )


def _options(outer: str) -> dict[str, str]:
    """Returns the fields that an outer optimizer uses, and the arguments they set."""
    parameters = inspect.signature(OUTER[outer]).parameters
    names = [field.name for field in dataclasses.fields(Outer)]
    arguments = {name: _ARGUMENTS.get(name, name) for name in names}
    return {name: own for name, own in arguments.items() if own in parameters}


def make_outer(
    config: Outer,
    base: BaseOptimizer,
    steps: int,
    mechanism: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Makes the base optimizer with an outer optimizer over a mechanism.

    Raises:
      UsageError: if the training ends before the first outer step.
    """
    assert config.outer is not None, "`NO_OUTER` needs no outer optimizer"
    make, options = OUTER[config.outer], _options(config.outer)
    given = {own: getattr(config, name) for name, own in options.items()}
    values = {own: value for own, value in given.items() if value is not None}
    _check_length(make, values, steps)
    if config.outer == "slowmo":  # Its momentum follows the rate of the local steps.
        values["learning_rate"] = learning_rate_schedule(base, steps)
    return make(make_base(base, steps), mechanism, **values)


def _check_length(make: Callable, values: dict[str, Any], steps: int) -> None:
    """Raises UsageError if the training ends before the first outer step."""
    parameters = inspect.signature(make).parameters
    used = {name: p.default for name, p in parameters.items()} | values
    first = used["period"] // used.get("fragments", 1) + used.get("delay", 0)
    if first > steps:
        raise UsageError(
            f"--outer-period {used['period']} is too long for a training of {steps} "
            f"steps, since the first outer step comes after {first} steps: choose a "
            "shorter period, or more --epochs."
        )
