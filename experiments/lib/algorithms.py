"""Algorithms as the command line names them: how workers average, around what."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import optax

import djax
from djax.corrections._d2 import check_d2
from djax.mechanisms._relay import Missing
from djax.topologies import Graph

from .errors import UsageError, lookup
from .graphs import FIXED, check_fixed
from .optimizers import BaseOptimizer, make_base
from .options import read_options


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """How the workers average."""

    algorithm: str = "dpsgd"
    """The algorithm, under its paper's name: all_reduce_sgd, dpsgd, relay_sgd,
    relay_sgd_grad, d2_sgd, exact_diffusion, gradient_tracking_sgd, sgp,
    quasi_global_momentum (of --optimizer sgd), quasi_global_adam (of --optimizer adam);
    with little communication power_gossip, choco_sgd, deep_squeeze, moniqua, dcd_psgd
    and ecd_psgd; without waiting, on virtual clocks, a2cid2 and adpsgd."""
    consensus_rate: float | None = None
    """Step size of the averaging: 1 by default, but choco_sgd, deep_squeeze and moniqua
    need one, the smaller the coarser their messages are."""
    overlap: bool = False
    """Send messages that do not depend on this step's gradients."""
    local_steps: int = 1
    """Number of local steps between two averaging steps."""
    missing: Missing | None = None
    """What stands for the models that have not reached a worker of relay_sgd."""
    rounds: int = 1
    """Exchanges in each step of sgp; each takes the next step of its graph."""
    rank: int = 1
    """Rank of power_gossip's corrections."""
    iterations: int = 1
    """Power iterations of power_gossip in each step."""
    warm_start: bool = True
    """Multiply by what power_gossip's last iteration found, not by random vectors."""
    compressor: str | None = None
    """Code of the messages of choco_sgd, deep_squeeze, dcd_psgd and ecd_psgd: identity,
    top_k, random_k, sign, low_rank or quantize. By default top_k, for dcd_psgd and
    ecd_psgd, which need a fine and unbiased one (identity, random_k or quantize),
    quantize."""
    compressor_options: dict[str, str] = dataclasses.field(default_factory=dict)
    """Its arguments, as in `fraction 0.01`, `rank 2` or `bits 4`; by default `fraction
    0.1`, `rank 1`, `bits 8`. Random ones are unbiased for dcd_psgd and ecd_psgd, and
    contractions for choco_sgd and deep_squeeze."""
    theta: float = 1.0
    """How far apart neighbours of moniqua may be in a coordinate."""
    bits: int = 2
    """Bits of each coordinate in moniqua's messages."""
    check: bool = True
    """Refuse graphs on which d2_sgd diverges: fixed ones whose mixing weights have an
    eigenvalue below -1/3, and many of those that change with time."""


def _each(graphs, make):
    """A mechanism, or one for each graph's share of the coordinates."""
    if len(graphs) == 1:
        return make(graphs[0])
    return djax.interleave([make(graph) for graph in graphs])


def _rate(config) -> float:
    return 1.0 if config.consensus_rate is None else config.consensus_rate


def _tuned_rate(config) -> float:
    if config.consensus_rate is None:
        raise UsageError(
            f"--algorithm {config.algorithm} needs a --consensus-rate: the coarser the "
            "messages, the smaller; try 0.1."
        )
    return config.consensus_rate


def _gossip(config, graphs, communicator, **options):
    rate = options.pop("consensus_rate", _rate(config))
    return _each(
        graphs,
        lambda g: djax.gossip(g, communicator, consensus_rate=rate, **options),
    )


def _rare_gossip(config, graphs, communicator, **options):
    """Gossip for corrections, which have to see the local steps as well."""
    gossip = _gossip(config, graphs, communicator, **options)
    return djax.every(config.local_steps, gossip)


def _overlapping_gossip(config, graphs, communicator):
    return _gossip(config, graphs, communicator, overlap=config.overlap)


TREES = "chain, star, binary_tree, regular_tree or double_binary_trees"


def _relay(config, graphs, communicator):
    for graph in graphs:
        if isinstance(graph, djax.Topology) and graph.is_tree:
            continue
        fixed = isinstance(graph, djax.Topology)
        problem = "has cycles" if fixed else "is directed or changes with time"
        raise UsageError(
            f"--algorithm {config.algorithm} needs a tree, but --topology "
            f"{graph.name} {problem}; choose --topology {TREES}."
        )
    options = {"missing": config.missing, "overlap": config.overlap}
    return _each(graphs, lambda g: djax.relay(g, communicator, **options))


def _relay_of_updates(config, graphs, communicator):
    return djax.on_updates(_relay(config, graphs, communicator))


def _d2(config, graphs, communicator):
    for graph in graphs if config.check else ():
        if isinstance(graph, djax.Topology):  # Its error names weights that are fine.
            check_d2(config.algorithm, graph, _rate(config))
    return djax.d2(_rare_gossip(config, graphs, communicator), check=config.check)


def _exact_diffusion(config, graphs, communicator):
    return djax.d2(_rare_gossip(config, graphs, communicator, consensus_rate=0.5))


def _gradient_tracking(config, graphs, communicator):
    return djax.gradient_tracking(_rare_gossip(config, graphs, communicator))


def _push_sum(config, graphs, communicator):
    schedule = graphs[0]
    if not isinstance(schedule, djax.Schedule):
        schedule = djax.topologies.one_peer_exponential(communicator.size)
    return djax.push_sum(
        schedule, communicator, rounds=config.rounds, overlap=config.overlap
    )


def _all_reduce(config, graphs, communicator):
    del graphs
    return djax.all_reduce(communicator, overlap=config.overlap)


def _check_whole(what, graphs):
    if len(graphs) > 1:  # Among which single coordinates are dealt out.
        raise UsageError(f"{what} needs whole matrices: choose one --topology.")


def _power_gossip(config, graphs, communicator):
    _check_whole("--algorithm power_gossip", graphs)
    (graph,) = graphs
    if not graph.symmetric:
        raise UsageError(
            "--algorithm power_gossip needs messages that go both ways, which those of "
            f"--topology {graph.name} do not here; choose one such as --topology "
            f"base_graph, random_matchings, {FIXED}."
        )
    return djax.power_gossip(
        graph,
        communicator,
        config.rank,
        config.iterations,
        warm_start=config.warm_start,
        consensus_rate=_rate(config),
        overlap=config.overlap,
    )


COMPRESSORS = {
    "identity": {},
    "top_k": {"fraction": "0.1"},
    "random_k": {"fraction": "0.1"},
    "sign": {},
    "low_rank": {"rank": "1"},
    "quantize": {"bits": "8"},
}
"""The codes of :mod:`djax.compressors`, and their options by default."""


def _compressor(config, graphs, default, unbiased) -> djax.Compressor:
    name = lookup("--compressor", config.compressor or default, COMPRESSORS)
    if name == "low_rank":
        _check_whole("--compressor low_rank", graphs)
    make = getattr(djax.compressors, name)
    parameters = inspect.signature(make).parameters
    options = COMPRESSORS[name]
    if given := config.compressor_options:  # It cannot do without some of the others.
        required = {
            option: value
            for option, value in options.items()
            if parameters[option].default is inspect.Parameter.empty
        }
        options = required | given
    if "unbiased" in parameters:
        options = {"unbiased": str(unbiased)} | options
    what = f"--compressor-options of {name}"
    try:
        return make(**read_options(what, make, options, given=0))
    except (TypeError, ValueError) as error:
        raise UsageError(f"--compressor {name}: {error}") from error


def _with_code(make, fixed):
    def average(config, graphs, communicator):
        if fixed:
            check_fixed(config.algorithm, graphs)
        code = _compressor(config, graphs, "top_k", unbiased=False)
        if not code.contraction:
            raise UsageError(
                f"--algorithm {config.algorithm} needs a contraction, which "
                f"--compressor {config.compressor} is not with --compressor-options "
                "unbiased True: leave that option away."
            )
        rate, options = _tuned_rate(config), {"overlap": config.overlap}
        return _each(graphs, lambda g: make(g, communicator, code, rate, **options))

    return average


def _moniqua(config, graphs, communicator):
    rate = _tuned_rate(config)
    options = {"bits": config.bits, "overlap": config.overlap}
    return _each(
        graphs,
        lambda g: djax.moniqua(g, communicator, config.theta, rate, **options),
    )


def _with_copies(make):
    def average(config, graphs, communicator):
        check_fixed(config.algorithm, graphs)
        code = _compressor(config, graphs, "quantize", unbiased=True)
        if not code.unbiased:
            raise UsageError(
                f"--algorithm {config.algorithm} needs an unbiased code, which "
                f"--compressor {config.compressor or 'quantize'} is not here: choose "
                "identity, quantize or random_k, and leave their option unbiased away."
            )
        return _each(graphs, lambda g: make(g, communicator, code))

    return average


def _step_then_average(config, base, steps, mechanism):
    averaging = djax.every(config.local_steps, mechanism)
    return optax.chain(make_base(base, steps), averaging)


def _step_then_correct(config, base, steps, mechanism):
    return optax.chain(make_base(base, steps), mechanism)


def _average_gradients(config, base, steps, mechanism):
    if config.local_steps != 1:  # Local SGD averages models.
        return _step_then_average(config, base, steps, mechanism)
    return optax.chain(djax.on_updates(mechanism), make_base(base, steps))


def _quasi_global_momentum(config, base, steps, mechanism):
    def make(learning_rate, momentum=0.9, nesterov=False):
        if momentum is None:
            raise UsageError(
                f"--algorithm {config.algorithm} needs a momentum, as in "
                "--optimizer-options momentum 0.9."
            )
        return djax.quasi_global_momentum(
            learning_rate,
            djax.every(config.local_steps, mechanism),
            momentum=momentum,
            form="nesterov" if nesterov else "heavy_ball",
            overlap=config.overlap,
        )

    return _in_place_of("sgd", config, base, steps, make)


def _quasi_global_adam(config, base, steps, mechanism):
    def make(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
        averaging = djax.every(config.local_steps, mechanism)
        return djax.quasi_global_adam(learning_rate, averaging, b1=b1, b2=b2, eps=eps)

    return _in_place_of("adam", config, base, steps, make)


def _in_place_of(optimizer, config, base, steps, make):
    if base.optimizer != optimizer:
        raise UsageError(
            f"--algorithm {config.algorithm} is a form of {optimizer} and replaces no "
            f"other optimizer: use --optimizer {optimizer}, not {base.optimizer}."
        )
    return make_base(base, steps, make)


class _Recipe(NamedTuple):
    """An algorithm.

    Attributes:
      average: makes the mechanism of config, graphs and communicator.
      options: the fields of the config that mean something to it.
      compose: puts it together of config, base, steps and mechanism.
    """

    average: Callable
    options: set[str]
    compose: Callable = _step_then_average


TUNED = {"choco_sgd", "deep_squeeze", "moniqua"}
"""Algorithms that have no consensus rate by default."""
GOSSIP = {"consensus_rate", "overlap", "local_steps"}
CODE = {"compressor", "compressor_options"}

ALGORITHMS = {
    "all_reduce_sgd": _Recipe(
        _all_reduce, {"overlap", "local_steps"}, _average_gradients
    ),
    "dpsgd": _Recipe(_overlapping_gossip, GOSSIP),
    "relay_sgd": _Recipe(_relay, {"missing", "overlap", "local_steps"}),
    # Updates of local steps would reach nobody, ever.
    "relay_sgd_grad": _Recipe(_relay_of_updates, {"overlap"}),
    "d2_sgd": _Recipe(
        _d2, {"consensus_rate", "check", "local_steps"}, _step_then_correct
    ),
    "exact_diffusion": _Recipe(_exact_diffusion, {"local_steps"}, _step_then_correct),
    "gradient_tracking_sgd": _Recipe(
        _gradient_tracking, {"consensus_rate", "local_steps"}, _step_then_correct
    ),
    "sgp": _Recipe(_push_sum, {"rounds", "overlap", "local_steps"}),
    "quasi_global_momentum": _Recipe(_gossip, GOSSIP, _quasi_global_momentum),
    "quasi_global_adam": _Recipe(
        _gossip, {"consensus_rate", "local_steps"}, _quasi_global_adam
    ),
    "power_gossip": _Recipe(
        _power_gossip, GOSSIP | {"rank", "iterations", "warm_start"}
    ),
    "choco_sgd": _Recipe(_with_code(djax.choco_gossip, fixed=True), GOSSIP | CODE),
    "deep_squeeze": _Recipe(_with_code(djax.deep_squeeze, fixed=False), GOSSIP | CODE),
    "moniqua": _Recipe(_moniqua, GOSSIP | {"theta", "bits"}),
    "dcd_psgd": _Recipe(_with_copies(djax.dcd), {"local_steps"} | CODE),
    "ecd_psgd": _Recipe(_with_copies(djax.ecd), {"local_steps"} | CODE),
}


def make_optimizer(
    config: Algorithm,
    base: BaseOptimizer,
    steps: int,
    graphs: Sequence[Graph],
    communicator: djax.Communicator,
) -> optax.GradientTransformation:
    """Makes the base optimizer decentralized.

    Args:
      config: from the command line.
      base: what every worker does with its gradients, likewise.
      steps: of the whole training.
      graphs: who talks to whom; the coordinates are dealt out among several.
      communicator: how messages travel.

    Returns:
      What djax's function of the algorithm's name returns, of any base optimizer.

    Raises:
      UsageError: if the algorithm has no use for one of the options.
    """
    recipe = ALGORITHMS[config.algorithm]
    check_options(config, recipe.options)
    mechanism = recipe.average(config, graphs, communicator)
    return recipe.compose(config, base, steps, mechanism)


def may_be_too_fast(config: Algorithm) -> bool:
    """Whether a smaller consensus rate may keep a training from diverging.

    Args:
      config: from the command line.
    """
    recipe = ALGORITHMS.get(config.algorithm)
    if recipe is None or "consensus_rate" not in recipe.options:
        return False
    # Compressed messages need a small rate; all others are stable up to 1.
    return config.algorithm in TUNED or _rate(config) > 1


def check_options(config: Algorithm, known: set[str]) -> None:
    """Raises UsageError if the algorithm would ignore an option.

    Args:
      config: from the command line.
      known: names of the options that mean something to it.
    """
    defaults = Algorithm()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in {"algorithm", *known} or value == getattr(
            defaults, field.name
        ):
            continue
        flag = f"{'no-' if value is False else ''}{field.name}".replace("_", "-")
        options = ", ".join(f"--{name}".replace("_", "-") for name in sorted(known))
        raise UsageError(
            f"--algorithm {config.algorithm} has no option --{flag}"
            + (f", only {options}." if known else ".")
        )
