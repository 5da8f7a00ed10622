"""Optimizers as the command line names them: what every worker does by itself."""

import collections
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from .errors import UsageError, lookup
from .options import read_options

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
    decayed: Literal["all", "all_but_norms", "matrices"] = "all"
    """Which of them decay: all, all but those of normalizations, or those with more
    than one axis, which leaves biases out, too."""
    clip_norm: float | None = None
    """Largest norm of a gradient; longer ones are scaled down before anything else."""
    linear_scaling: int | None = None
    """Batch size, of all workers together, that the learning rate is for; its peak is
    scaled with the true one."""
    warmup_from: float = 0.0
    """Step size at which the growth begins."""
    warmup: float = 0.1
    """Share of the training during which the step size grows linearly."""
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
    if not 0 <= config.warmup_from < float("inf"):
        raise UsageError(f"--warmup-from {config.warmup_from} must not be negative.")
    decays = collections.Counter(round(share * steps) for share in config.decay_at)
    staircase = optax.piecewise_constant_schedule(
        config.learning_rate,
        {step: config.decay_factor**count for step, count in decays.items()},
    )
    if (warmup_steps := round(config.warmup * steps)) == 0:
        return staircase
    first = config.warmup_from / config.learning_rate
    ramp = optax.linear_schedule(first, 1.0, warmup_steps)
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
    links = []
    if config.clip_norm is not None:
        if not config.clip_norm > 0:
            raise UsageError(f"--clip-norm {config.clip_norm} must be positive.")
        links.append(optax.clip_by_global_norm(config.clip_norm))
    if config.weight_decay:
        mask = _MASKS[config.decayed]
        links.append(optax.add_decayed_weights(config.weight_decay, mask))
    elif config.decayed != BaseOptimizer.decayed:
        raise UsageError(f"--decayed {config.decayed} needs a --weight-decay.")
    return optax.chain(*links, base) if links else base


def scale_linearly(config: BaseOptimizer, samples: int) -> BaseOptimizer:
    """Replaces the learning rate by that for the true batch size.

    Args:
      config: from the command line.
      samples: of all workers' batches together.
    """
    if config.linear_scaling is None:
        return config
    if config.linear_scaling < 1:
        raise UsageError(f"--linear-scaling {config.linear_scaling} must be positive.")
    peak = config.learning_rate * samples / config.linear_scaling
    return dataclasses.replace(config, learning_rate=peak, linear_scaling=None)


def all_but_norms(params: Any) -> Any:
    """Which parameters are not of a normalization: its name has "norm" in it.

    Args:
      params: a tree of dictionaries.

    Returns:
      A tree of truth values.
    """

    def other(path, leaf):
        del leaf
        return "norm" not in jax.tree_util.keystr(path).lower()

    return jax.tree_util.tree_map_with_path(other, params)


def matrices(params: Any) -> Any:
    """Which parameters have more than one axis.

    Args:
      params: any tree.

    Returns:
      A tree of truth values.
    """
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


_MASKS: dict[str, Callable[[Any], Any] | None] = {
    "all": None,
    "all_but_norms": all_but_norms,
    "matrices": matrices,
}


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
