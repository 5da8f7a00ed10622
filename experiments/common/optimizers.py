"""Optimizers as the command line names them: what every worker does by itself."""

import collections
import dataclasses
import inspect
from collections.abc import Callable

import optax

from .errors import UsageError, lookup
from .tasks import read_options

SGD_OPTIONS = {"momentum": "0.9", "nesterov": "True"}


@dataclasses.dataclass(frozen=True)
class BaseOptimizer:
    """What every worker does with its gradients."""

    optimizer: str = "sgd"
    """Any optimizer of optax that takes a learning rate."""
    optimizer_options: dict[str, str] = dataclasses.field(default_factory=dict)
    """Its other arguments, as in `momentum 0.9 nesterov True`, the default of sgd."""
    learning_rate: float = 0.1
    """Its peak step size."""
    weight_decay: float = 0.0
    """Added to the gradients, times the parameters."""
    warmup: float = 0.1
    """Share of the training during which the step size grows linearly from zero."""
    decay_at: tuple[float, ...] = (0.5, 0.75)
    """Shares of the training after which the step size is decayed."""
    decay_factor: float = 0.1
    """Factor of each decay."""


def learning_rate_schedule(config: BaseOptimizer, steps: int) -> optax.Schedule:
    """Linear warm-up, then a staircase.

    Args:
      config: from the command line.
      steps: of the whole training.
    """
    if not 0 < config.learning_rate < float("inf"):
        raise UsageError(f"--learning-rate {config.learning_rate} must be positive.")
    shares = (config.warmup, *config.decay_at)
    if not all(0 <= share <= 1 for share in shares):
        raise UsageError("--warmup and --decay-at are shares in [0, 1].")
    decays = collections.Counter(round(share * steps) for share in config.decay_at)
    staircase = optax.piecewise_constant_schedule(
        config.learning_rate,
        {step: config.decay_factor**count for step, count in decays.items()},
    )
    if (warmup_steps := round(config.warmup * steps)) == 0:
        return staircase
    ramp = optax.linear_schedule(0.0, 1.0, warmup_steps)
    return lambda step: ramp(step) * staircase(step)


def make_base(
    config: BaseOptimizer,
    steps: int,
    make: Callable[..., optax.GradientTransformation] | None = None,
) -> optax.GradientTransformation:
    """What every worker does with its gradients.

    Args:
      config: from the command line.
      steps: of the whole training.
      make: takes the place of optax's function of that name.

    Raises:
      UsageError: if the optimizer or one of its options is unknown.
    """
    lookup("--optimizer", config.optimizer, _optimizers())
    make = make or getattr(optax, config.optimizer)
    options = config.optimizer_options
    if config.optimizer == "sgd":
        options = options or SGD_OPTIONS
    what = f"--optimizer-options of {config.optimizer}"
    schedule = learning_rate_schedule(config, steps)
    base = make(schedule, **read_options(what, make, options))
    if config.weight_decay:
        base = optax.chain(optax.add_decayed_weights(config.weight_decay), base)
    return base


def _optimizers() -> list[str]:
    """Names of optax's functions whose first argument is a learning rate.

    L-BFGS is left out: its line search needs the objective.
    """
    return [
        name
        for name, make in inspect.getmembers(optax, inspect.isfunction)
        if next(iter(inspect.signature(make).parameters), None) == "learning_rate"
        and not name.startswith(("_", "scale_by_", "lbfgs"))
    ]
