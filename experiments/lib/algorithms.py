"""Makes optimizers from the names and options of algorithms on the command line."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import optax

import djax
from djax.topologies import Graph

from . import adapters
from . import graphs as needs
from .compression import make_compressor
from .errors import UsageError
from .optimizers import BaseOptimizer, make_base
from .options import Options, changed, write_flags
from .outer import NO_OUTER, Outer, check_outer, make_outer
from .ranges import flag


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """How the workers average."""

    algorithm: str = "dpsgd"
    """The algorithm, under its paper's name: all_reduce_sgd, dpsgd, relay_sgd,
    relay_sgd_grad, d2_sgd, exact_diffusion, gradient_tracking_sgd, sgp; led, k_gt and
    prox_skip, which correct local steps for data that differ; quasi_global_momentum
    (for --optimizer sgd), quasi_global_adam (for --optimizer adam). power_gossip,
    choco_sgd, deep_squeeze, moniqua, dcd_psgd and ecd_psgd compress messages. a2cid2
    and adpsgd are asynchronous."""
    consensus_rate: float | None = None
    """Step size of the averaging; 1 by default, for led 0.5. It has no default for
    choco_sgd, deep_squeeze and moniqua: they need a small one if their messages are
    coarse."""
    overlap: bool = False
    """Send messages that do not depend on this step's gradients."""
    local_steps: int = 1
    """Number of local steps between two averaging steps."""
    dual_rate: float | None = None
    """How much of what an averaging changed in the models goes into the correction of
    led or prox_skip; by default 1 over --local-steps, and --probability."""
    k_gt_rate: float = 1.0
    """Share of the way since the last averaging that counts in k_gt."""
    probability: float = 0.25
    """Probability with which the workers of prox_skip average in a step."""
    chi: float = 1.0
    """How careful the averaging of prox_skip is: models go 1 / (2 chi) of the way."""
    coin_seed: int = 0
    """Seed of the coins of prox_skip."""
    missing: Literal["initial", "latest", "self", "renormalize"] | None = None
    """What relay_sgd puts in place of models that have not reached a worker."""
    rounds: int = 1
    """Exchanges in each step of sgp; each uses the next matrix of its schedule."""
    rank: int = 1
    """Rank with which power_gossip approximates the differences between neighbours."""
    iterations: int = 1
    """Power iterations of power_gossip in each step."""
    warm_start: bool = True
    """Start a power iteration of power_gossip at the result of the last one, instead of
    at random vectors."""
    compressor: str | None = None
    """Code of the messages of choco_sgd, deep_squeeze, dcd_psgd and ecd_psgd: identity,
    top_k, random_k, sign, low_rank, dct or quantize; top_k by default. dcd_psgd and
    ecd_psgd need a fine and unbiased code (identity, random_k or quantize): quantize by
    default."""
    compressor_options: Options = dataclasses.field(default_factory=dict)
    """Arguments of the code, as in `fraction 0.01`, `rank 2` or `bits 4`; by default
    `fraction 0.1`, `rank 1`, `k 32` (dct), `bits 8`. Random codes are unbiased for
    dcd_psgd and ecd_psgd, and contractions for choco_sgd and deep_squeeze."""
    theta: float = 1.0
    """Largest difference between neighbours of moniqua in a coordinate."""
    bits: int = 2
    """Bits of each coordinate in moniqua's messages."""
    check: bool = True
    """Refuse graphs on which d2_sgd diverges: fixed graphs whose mixing matrix has an
    eigenvalue below -1/3, and many of the graphs that change with time. Also refuse a
    --dual-rate with which led or prox_skip diverges."""


class Recipe(NamedTuple):
    """How a mechanism of djax becomes an algorithm, in a chain with a base optimizer.

    The options of the algorithm are those fields of :class:`Algorithm` that are
    arguments of `mechanism`, `around` or `optimizer`.

    Attributes:
      mechanism: makes a mechanism of a graph and a communicator.
      graphs: refuses graphs with which the algorithm does not work, and returns those
        that are used, which may be others.
      around: wraps the mechanism, as a correction does.
      gradients: whether gradients are averaged in place of models. With local steps
        between two averaging steps models are averaged all the same.
      base: the name of the only base optimizer that `optimizer` can replace.
      optimizer: takes a mechanism, and returns a function with the arguments of optax's
        function called `base`; for algorithms that combine averaging and optimizer.
      unbiased: whether compressed messages have to be unbiased.
      local_steps: whether there may be local steps between two averaging steps. If
        `around` makes them itself, this is False.
    """

    mechanism: Callable[..., djax.Mechanism]
    graphs: Callable[[str, Sequence[Graph]], Sequence[Graph]] = (
        lambda algorithm, graphs: graphs
    )
    around: Callable[..., djax.Mechanism] | None = None
    gradients: bool = False
    base: str | None = None
    optimizer: Callable[..., Callable[..., Any]] | None = None
    unbiased: bool = False
    local_steps: bool = True

    @property
    def options(self) -> set[str]:
        """Names of the fields of :class:`Algorithm` that the algorithm uses."""
        parts = filter(None, (self.mechanism, self.around, self.optimizer))
        found = set[str]().union(*map(_arguments, parts))
        found |= {"compressor_options"} if "compressor" in found else set()
        return found | ({"local_steps"} if self.local_steps else set())

    @property
    def tuned(self) -> bool:
        """Whether the user must choose the consensus rate, since it has no default."""
        rate = _arguments(self.mechanism).get("consensus_rate")
        return rate is not None and rate.default is inspect.Parameter.empty


def _arguments(make: Callable) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a function that are fields of :class:`Algorithm`."""
    fields = {field.name for field in dataclasses.fields(Algorithm)}
    fields -= getattr(make, "keywords", {}).keys()  # Of a functools.partial.
    parameters = inspect.signature(make).parameters
    return {name: parameters[name] for name in parameters if name in fields}


ALGORITHMS = {
    "all_reduce_sgd": Recipe(djax.all_reduce, gradients=True),
    "dpsgd": Recipe(djax.gossip),
    "relay_sgd": Recipe(djax.relay, needs.take_trees),
    # No local steps: their updates would never be sent to any neighbour.
    "relay_sgd_grad": Recipe(
        functools.partial(djax.relay, missing=None),
        needs.take_trees,
        around=djax.on_updates,
        local_steps=False,
    ),
    "d2_sgd": Recipe(adapters.gossip_for_d2, around=djax.d2),
    "exact_diffusion": Recipe(
        functools.partial(adapters.gossip, consensus_rate=0.5),
        around=functools.partial(djax.d2, check=True),
    ),
    "gradient_tracking_sgd": Recipe(adapters.gossip, around=djax.gradient_tracking),
    "led": Recipe(adapters.lazy_gossip, around=adapters.led, local_steps=False),
    "k_gt": Recipe(adapters.gossip, around=adapters.k_gt, local_steps=False),
    "prox_skip": Recipe(adapters.gossip, around=adapters.prox_skip, local_steps=False),
    "sgp": Recipe(djax.push_sum, needs.take_changing),
    "quasi_global_momentum": Recipe(
        adapters.gossip, base="sgd", optimizer=adapters.quasi_global_momentum
    ),
    "quasi_global_adam": Recipe(
        adapters.gossip, base="adam", optimizer=adapters.quasi_global_adam
    ),
    "power_gossip": Recipe(djax.power_gossip, needs.take_one_with_both_ways),
    "choco_sgd": Recipe(djax.choco_gossip, needs.take_fixed),
    "deep_squeeze": Recipe(djax.deep_squeeze),
    "moniqua": Recipe(djax.moniqua),
    "dcd_psgd": Recipe(djax.dcd, needs.take_fixed, unbiased=True),
    "ecd_psgd": Recipe(djax.ecd, needs.take_fixed, unbiased=True),
}
"""The algorithms in which workers wait for each other, by their names."""


def _call_with(config: Algorithm, recipe: Recipe, make: Callable, *args: Any) -> Any:
    """Calls `make` with those options of the configuration that are its arguments."""
    values: dict[str, Any] = {name: getattr(config, name) for name in _arguments(make)}
    if "compressor" in values:
        values["compressor"] = make_compressor(
            config.algorithm,
            config.compressor,
            config.compressor_options,
            unbiased=recipe.unbiased,
        )
    if "consensus_rate" in values and config.consensus_rate is None:
        if recipe.tuned:
            raise UsageError(
                f"--algorithm {config.algorithm} needs a --consensus-rate: the coarser "
                "the messages, the smaller; try 0.1."
            )
        del values["consensus_rate"]
    return make(*args, **values)


def make_optimizer(
    config: Algorithm,
    base: BaseOptimizer,
    steps: int,
    graphs: Sequence[Graph],
    communicator: djax.Communicator,
    outer: Outer = NO_OUTER,
    local: djax.Communicator | None = None,
) -> optax.GradientTransformation:
    """Makes the optimizer of a decentralized algorithm around a base optimizer.

    With several graphs, each averages a part of the coordinates. With groups, whose
    workers `local` connects, gradients are averaged within a group before anything
    else, and `communicator` connects workers of different groups.
    """
    how = config, base, steps, graphs, communicator, outer
    if local is None:
        return _make_optimizer(*how)
    within = djax.on_updates(djax.all_reduce(local))
    return optax.chain(within, _make_optimizer(*how, lambda m: djax.sharded(m, local)))


def _make_optimizer(
    config: Algorithm,
    base: BaseOptimizer,
    steps: int,
    graphs: Sequence[Graph],
    communicator: djax.Communicator,
    outer: Outer,
    share: Callable[[djax.Mechanism], djax.Mechanism] = lambda mechanism: mechanism,
) -> optax.GradientTransformation:
    """Makes the optimizer without what is done within groups.

    Args:
      share: wraps the mechanism, so that a worker sends only its share of the model.
    """
    recipe = ALGORITHMS[config.algorithm]
    check_used(config, recipe.options)
    check_outer(outer)
    _check_fits(config, recipe, outer)
    graphs = recipe.graphs(config.algorithm, graphs)
    if config.compressor == "low_rank":
        needs.check_whole("--compressor low_rank", graphs)
    call = functools.partial(_call_with, config, recipe)
    if recipe.mechanism is djax.all_reduce:
        mechanism = call(recipe.mechanism, communicator)
    else:
        parts = [call(recipe.mechanism, graph, communicator) for graph in graphs]
        mechanism = parts[0] if len(parts) == 1 else djax.interleave(parts)
    mechanism = share(mechanism)
    if outer.outer is not None:
        return make_outer(outer, base, steps, mechanism)
    if recipe.gradients and config.local_steps == 1:  # Local SGD averages models.
        return optax.chain(djax.on_updates(mechanism), make_base(base, steps))
    averaging = mechanism
    if recipe.local_steps:
        averaging = djax.every(config.local_steps, mechanism)
    if recipe.around is not None:
        averaging = call(recipe.around, averaging)
    if recipe.optimizer is None:
        return optax.chain(make_base(base, steps), averaging)
    if base.optimizer != recipe.base:
        raise UsageError(
            f"--algorithm {config.algorithm} is a form of {recipe.base} and replaces "
            f"no other optimizer: use --optimizer {recipe.base}, not {base.optimizer}."
        )
    return make_base(base, steps, call(recipe.optimizer, averaging))


def _check_fits(config: Algorithm, recipe: Recipe, outer: Outer) -> None:
    """Raises UsageError if an outer optimizer does not fit the algorithm."""
    if outer.outer is None:
        return
    reason = None
    if recipe.around is djax.on_updates:
        reason = "averages gradients: choose --algorithm relay_sgd"
    elif recipe.around is not None:
        reason = "corrects every step: leave --outer away, and use --local-steps"
    elif recipe.optimizer is not None:
        reason = "is an optimizer of its own: choose --algorithm dpsgd"
    if reason is not None:
        raise UsageError(
            f"--outer {outer.outer} needs an algorithm that only averages models, but "
            f"{config.algorithm} {reason}."
        )
    if config.local_steps != 1:
        raise UsageError(
            f"--local-steps {config.local_steps} is for algorithms without --outer: "
            f"use --outer-period {config.local_steps}."
        )


def check_used(config: Algorithm, known: set[str]) -> None:
    """Raises UsageError if the algorithm would ignore an option."""
    for name, value in changed(config).items():
        if name not in {"algorithm", *known}:
            raise UsageError(
                f"--algorithm {config.algorithm} has no option "
                + write_flags({name: value})[0]
                + (f", only {', '.join(map(flag, sorted(known)))}." if known else ".")
            )
