"""The paper's runs as command lines of :mod:`experiments.train`."""

from collections.abc import Callable

import djax

from ..lib.papers import Row
from .settings import SIGN, TOP, Configuration, Method

_ALGORITHMS: dict[Callable, str] = {
    djax.all_reduce: "all_reduce_sgd",
    djax.gossip: "dpsgd",
    djax.power_gossip: "power_gossip",
    djax.choco_gossip: "choco_sgd",
    djax.deep_squeeze: "deep_squeeze",
    djax.moniqua: "moniqua",
}
_COMPRESSORS = {
    SIGN["compressor"]: "sign",
    TOP["compressor"]: "top_k --compressor-options fraction 0.01",
}


def make_rows(configuration: Configuration) -> tuple[Row, ...]:
    """A row for each method of a configuration.

    Args:
      configuration: of :mod:`experiments.powergossip.settings`.
    """
    return tuple(
        Row(
            method.name,
            arguments(method),
            _peak(configuration, method.factor),
            tried=tuple(_peak(configuration, f) for f in method.tried.get("F", ())),
            seeds=method.seeds,
        )
        for method in configuration.methods
    )


def arguments(method: Method) -> str:
    """How :mod:`experiments.train` is told to average as a method does.

    Args:
      method: of :mod:`experiments.powergossip.settings`.
    """
    words = ["--algorithm", _ALGORITHMS[method.mechanism]]
    for name, value in method.options.items():
        flag = f"--{name}".replace("_", "-")
        if name == "compressor":
            words += [flag, _COMPRESSORS[value]]
        elif value is False:
            words.append(f"--no-{name}".replace("_", "-"))
        else:
            words += [flag, str(value)]
    return " ".join([*words, *(["--overlap"] if method.overlap else [])])


def _peak(configuration: Configuration, factor: float) -> float:
    return round(factor * configuration.learning_rate, 6)
