"""Makes the base optimizer, which every worker applies to its own gradients."""

import collections
import dataclasses
import inspect
import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from . import ranges
from .errors import UsageError, lookup
from .options import Options, check_options, check_ranges

SGD_OPTIONS = {"momentum": 0.9, "nesterov": True}
_FORGETTING = ranges.Range(0, 1, open_above=True)
_RANGES = {
    **dict.fromkeys(("momentum", "b1", "b2", "b3", "decay", "rho"), _FORGETTING),
    "eps": ranges.POSITIVE,
}
"""Allowed values of the options of optax's optimizers."""


@dataclasses.dataclass(frozen=True)
class BaseOptimizer:
    """Options of the optimizer that every worker applies to its own gradients."""

    optimizer: str = "sgd"
    """Any optimizer of optax that takes a learning rate."""
    optimizer_options: Options = dataclasses.field(default_factory=dict)
    """Other arguments of the optimizer; by default, sgd has `momentum 0.9 nesterov
    True`."""
    learning_rate: float = 0.1
    """Largest step size, which is reached at the end of the warm-up."""
    weight_decay: float = 0.0
    """Factor of the parameters that are added to the gradients."""
    decayed: Literal["all", "all_but_norms", "matrices"] = "all"
    """Parameters with weight decay: all; all but those of normalizations; or matrices,
    which have more than one axis, so that biases have no weight decay either."""
    clip_norm: float | None = None
    """Largest norm of a gradient; a longer gradient is first scaled down to this norm.
    """
    linear_scaling: int | None = None
    """Batch size of all workers together for which --learning-rate is meant. The
    learning rate is multiplied by the true batch size over this one."""
    warmup_from: float = 0.0
    """Step size at the beginning of the warm-up."""
    warmup: float = 0.1
    """Share of the training that is warm-up, in which the step size grows linearly."""
    decay_at: tuple[float, ...] = (0.5, 0.75)
    """Shares of the training after which the step size is decayed."""
    decay_factor: float = 0.1
    """Factor by which each decay multiplies the step size."""
    decay_over: float = 0.0
    """Share of the training over which each decay is spread, geometrically; 0 decays at
    once. RelaySGD needs a spread if workers' data differ: models on their way through
    the tree still have the larger step size, so a sudden decay throws workers off."""
    rate_at_end: bool = False
    """Use in each step the step size of its end instead of its beginning, as the
    published code of PowerGossip does."""


def learning_rate_schedule(config: BaseOptimizer, steps: int) -> optax.Schedule:
    """Makes the schedule of the learning rate: a linear warm-up, and then decays."""
    ranges.check(config)
    _check_decays(config)
    decays, shift = _decays(config, steps), int(config.rate_at_end)
    ramp = optax.constant_schedule(1.0)
    if warmup_steps := round(config.warmup * steps):
        first = config.warmup_from / config.learning_rate
        ramp = optax.linear_schedule(first, 1.0, warmup_steps)
    return lambda step: ramp(step + shift) * decays(step + shift)


def _check_decays(config: BaseOptimizer) -> None:
    """Raises UsageError if decays are not in order, or overlap."""
    shares = " ".join(map(str, config.decay_at))
    for first, second in itertools.pairwise(config.decay_at):
        if first >= second:
            raise UsageError(
                f"--decay-at {shares} must be in ascending order, no share twice."
            )
        if config.decay_over > second - first + 1e-9:  # Tolerates rounding errors.
            raise UsageError(
                f"--decay-over {config.decay_over} makes the decays of --decay-at "
                f"{shares} overlap: it must be at most {second - first:.4g}."
            )


def _decays(config: BaseOptimizer, steps: int) -> optax.Schedule:
    """Makes the schedule of the learning rate without the warm-up."""
    starts = [round(share * steps) for share in config.decay_at]
    if (length := round(config.decay_over * steps)) == 0:
        factors = collections.Counter(starts)
        return optax.piecewise_constant_schedule(
            config.learning_rate,
            {step: config.decay_factor**count for step, count in factors.items()},
        )

    def slopes(step):
        done = (step - jnp.asarray(starts, jnp.float32)) / length
        return config.learning_rate * config.decay_factor ** done.clip(0, 1).sum()

    return slopes


def make_base(
    config: BaseOptimizer,
    steps: int,
    make: Callable[..., optax.GradientTransformation] | None = None,
) -> optax.GradientTransformation:
    """Makes the optimizer that every worker applies to its own gradients.

    A function `make` replaces optax's function called `config.optimizer`.
    """
    lookup("--optimizer", config.optimizer, _optimizers())
    make = make or getattr(optax, config.optimizer)
    options = config.optimizer_options
    if config.optimizer == "sgd":
        options = options or SGD_OPTIONS
    what = f"--optimizer-options of {config.optimizer}"
    schedule = learning_rate_schedule(config, steps)
    values = check_options(what, make, options)
    allowed, eps = dict(_RANGES), inspect.signature(make).parameters.get("eps")
    if eps is not None and eps.default == 0:  # LARS has this default.
        allowed["eps"] = ranges.NOT_NEGATIVE
    check_ranges(what, values, allowed)
    base = make(schedule, **values)
    links = []
    if config.clip_norm is not None:
        links.append(optax.clip_by_global_norm(config.clip_norm))
    if config.weight_decay:
        mask = _MASKS[config.decayed]
        links.append(optax.add_decayed_weights(config.weight_decay, mask))
    elif config.decayed != BaseOptimizer.decayed:
        raise UsageError(f"--decayed {config.decayed} needs a --weight-decay.")
    return optax.chain(*links, base) if links else base


def scale_linearly(config: BaseOptimizer, samples: int) -> BaseOptimizer:
    """Scales the learning rate to the true batch size, if `linear_scaling` asks for it.

    The samples are those of a step of all workers together.
    """
    if config.linear_scaling is None:
        return config
    peak = config.learning_rate * samples / config.linear_scaling
    return dataclasses.replace(config, learning_rate=peak, linear_scaling=None)


def all_but_norms(params: Any) -> Any:
    """Tells which parameters are not those of a module with "norm" in its name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "norm" not in jax.tree_util.keystr(path).lower(), params
    )


def matrices(params: Any) -> Any:
    """Tells which parameters have more than one axis."""
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


_MASKS: dict[str, Callable[[Any], Any] | None] = {
    "all": None,
    "all_but_norms": all_but_norms,
    "matrices": matrices,
}


def _optimizers() -> list[str]:
    """Lists the names of optax's functions whose first argument is a learning rate.

    L-BFGS is left out: its line search needs the objective.
    """
    return [
        name
        for name, make in inspect.getmembers(optax, inspect.isfunction)
        if next(iter(inspect.signature(make).parameters), None) == "learning_rate"
        and not name.startswith(("_", "scale_by_", "lbfgs"))
    ]
