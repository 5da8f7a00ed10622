"""Makes optimizers from the names and options of algorithms on the command line."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import optax

import djax
from djax.topologies import Graph

from . import graphs as needs
from .errors import UsageError, lookup
from .optimizers import BaseOptimizer, make_base
from .options import Options, changed, check_options, write_flags
from .ranges import flag


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """How the workers average."""

    algorithm: str = "dpsgd"
    """The algorithm, under its paper's name: all_reduce_sgd, dpsgd, relay_sgd,
    relay_sgd_grad, d2_sgd, exact_diffusion, gradient_tracking_sgd, sgp,
    quasi_global_momentum (for --optimizer sgd), quasi_global_adam (for --optimizer
    adam). power_gossip, choco_sgd, deep_squeeze, moniqua, dcd_psgd and ecd_psgd
    compress messages. a2cid2 and adpsgd are asynchronous."""
    consensus_rate: float | None = None
    """Step size of the averaging; 1 by default. It has no default for choco_sgd,
    deep_squeeze and moniqua: they need a small one if their messages are coarse."""
    overlap: bool = False
    """Send messages that do not depend on this step's gradients."""
    local_steps: int = 1
    """Number of local steps between two averaging steps."""
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
    top_k, random_k, sign, low_rank or quantize; top_k by default. dcd_psgd and ecd_psgd
    need a fine and unbiased code (identity, random_k or quantize): quantize by default.
    """
    compressor_options: Options = dataclasses.field(default_factory=dict)
    """Arguments of the code, as in `fraction 0.01`, `rank 2` or `bits 4`; by default
    `fraction 0.1`, `rank 1`, `bits 8`. Random codes are unbiased for dcd_psgd and
    ecd_psgd, and contractions for choco_sgd and deep_squeeze."""
    theta: float = 1.0
    """Largest difference between neighbours of moniqua in a coordinate."""
    bits: int = 2
    """Bits of each coordinate in moniqua's messages."""
    check: bool = True
    """Refuse graphs on which d2_sgd diverges: fixed graphs whose mixing matrix has an
    eigenvalue below -1/3, and many of the graphs that change with time."""


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
      local_steps: whether there may be local steps between two averaging steps.
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


def _gossip_for_d2(
    graph: Graph,
    communicator: djax.Communicator,
    consensus_rate: float = 1.0,
    check: bool = True,
) -> djax.Mechanism:
    """Makes gossip for D², and refuses a fixed graph on which D² diverges.

    The check is that of :func:`djax.d2_sgd`, whose error names weights that work.
    """
    if check and isinstance(graph, djax.Topology):
        djax.d2_sgd(1.0, graph, communicator, consensus_rate=consensus_rate)
    return djax.gossip(graph, communicator, consensus_rate=consensus_rate)


def _quasi_global_momentum(mechanism: djax.Mechanism, overlap: bool) -> Callable:
    def make(learning_rate, momentum=0.9, nesterov=False):
        if momentum is None:
            raise UsageError(
                "--algorithm quasi_global_momentum needs a momentum, as in "
                "--optimizer-options momentum 0.9."
            )
        return djax.quasi_global_momentum(
            learning_rate,
            mechanism,
            momentum=momentum,
            form="nesterov" if nesterov else "heavy_ball",
            overlap=overlap,
        )

    return make


def _quasi_global_adam(mechanism: djax.Mechanism) -> Callable:
    def make(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
        return djax.quasi_global_adam(learning_rate, mechanism, b1=b1, b2=b2, eps=eps)

    return make


_gossip = functools.partial(djax.gossip, overlap=False)
"""Gossip without overlap; corrections and quasi-global optimizers set it themselves."""

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
    "d2_sgd": Recipe(_gossip_for_d2, around=djax.d2),
    "exact_diffusion": Recipe(
        functools.partial(_gossip, consensus_rate=0.5),
        around=functools.partial(djax.d2, check=True),
    ),
    "gradient_tracking_sgd": Recipe(_gossip, around=djax.gradient_tracking),
    "sgp": Recipe(djax.push_sum, needs.take_changing),
    "quasi_global_momentum": Recipe(
        _gossip, base="sgd", optimizer=_quasi_global_momentum
    ),
    "quasi_global_adam": Recipe(_gossip, base="adam", optimizer=_quasi_global_adam),
    "power_gossip": Recipe(djax.power_gossip, needs.take_one_with_both_ways),
    "choco_sgd": Recipe(djax.choco_gossip, needs.take_fixed),
    "deep_squeeze": Recipe(djax.deep_squeeze),
    "moniqua": Recipe(djax.moniqua),
    "dcd_psgd": Recipe(djax.dcd, needs.take_fixed, unbiased=True),
    "ecd_psgd": Recipe(djax.ecd, needs.take_fixed, unbiased=True),
}
"""The algorithms in which workers wait for each other, by their names."""


COMPRESSORS: dict[str, dict[str, Any]] = {
    "identity": {},
    "top_k": {"fraction": 0.1},
    "random_k": {"fraction": 0.1},
    "sign": {},
    "low_rank": {"rank": 1},
    "quantize": {"bits": 8},
}
"""The codes of :mod:`djax.compressors`, with their default options."""


def _make_compressor(config: Algorithm, *, unbiased: bool) -> djax.Compressor:
    """Makes the code of messages, which is to be unbiased, or else a contraction."""
    name = config.compressor or ("quantize" if unbiased else "top_k")
    lookup("--compressor", name, COMPRESSORS)
    make = getattr(djax.compressors, name)
    parameters = inspect.signature(make).parameters
    options = COMPRESSORS[name]
    if config.compressor_options:  # Keep only what the code cannot do without.
        missing = inspect.Parameter.empty
        options = {k: v for k, v in options.items() if parameters[k].default is missing}
    if "unbiased" in parameters:
        options = {"unbiased": unbiased} | options
    options = {**options, **config.compressor_options}
    what = f"--compressor-options of {name}"
    try:
        code = make(**check_options(what, make, options, given=0))
    except (TypeError, ValueError) as error:
        raise UsageError(f"--compressor {name}: {error}") from error
    if unbiased and not code.unbiased:
        raise UsageError(
            f"--algorithm {config.algorithm} needs an unbiased code, which "
            f"--compressor {name} is not here: choose identity, quantize or random_k, "
            "and leave their option unbiased away."
        )
    if not unbiased and not code.contraction:
        raise UsageError(
            f"--algorithm {config.algorithm} needs a contraction, which --compressor "
            f"{name} is not with --compressor-options unbiased True: leave that option "
            "away."
        )
    return code


def _call_with(config: Algorithm, recipe: Recipe, make: Callable, *args: Any) -> Any:
    """Calls `make` with those options of the configuration that are its arguments."""
    values: dict[str, Any] = {name: getattr(config, name) for name in _arguments(make)}
    if "compressor" in values:
        values["compressor"] = _make_compressor(config, unbiased=recipe.unbiased)
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
) -> optax.GradientTransformation:
    """Makes the optimizer of a decentralized algorithm around a base optimizer.

    With several graphs, each averages a part of the coordinates.
    """
    recipe = ALGORITHMS[config.algorithm]
    check_used(config, recipe.options)
    graphs = recipe.graphs(config.algorithm, graphs)
    if config.compressor == "low_rank":
        needs.check_whole("--compressor low_rank", graphs)
    call = functools.partial(_call_with, config, recipe)
    if recipe.mechanism is djax.all_reduce:
        mechanism = call(recipe.mechanism, communicator)
    else:
        parts = [call(recipe.mechanism, graph, communicator) for graph in graphs]
        mechanism = parts[0] if len(parts) == 1 else djax.interleave(parts)
    if recipe.gradients and config.local_steps == 1:  # Local SGD averages models.
        return optax.chain(djax.on_updates(mechanism), make_base(base, steps))
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


def check_used(config: Algorithm, known: set[str]) -> None:
    """Raises UsageError if the algorithm would ignore an option."""
    for name, value in changed(config).items():
        if name not in {"algorithm", *known}:
            raise UsageError(
                f"--algorithm {config.algorithm} has no option "
                + write_flags({name: value})[0]
                + (f", only {', '.join(map(flag, sorted(known)))}." if known else ".")
            )
