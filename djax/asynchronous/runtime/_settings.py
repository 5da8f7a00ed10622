"""The arguments of a run, which are checked before any time is spent on it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from djax._arguments import check_choice
from djax._values import is_number, is_whole
from djax.topologies import Topology
from djax.topologies.checks import check_undirected
from djax.training import NonFinite
from djax.transport import TRANSPORTS

from ..algorithms import EventTransformation, edge_rates
from ._pairing import Pairing
from ._policies import EdgeClocks, FirstFree, FixedOrder

# Largest number of averagings of a worker per gradient; their times are drawn one by
# one.
_MOST_RATE = 1e5
# Longest timeout in seconds. Operating systems cannot wait much longer, and would fail
# in the middle of the run.
_LONGEST = 1e6

PAIRINGS = ("edge_clocks", "first_free", "fixed_order")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of :func:`djax.asynchronous.run` that are equal on all ranks.

    Attributes:
      rates: `float64[n, n]`, number of averagings of each pair per gradient.
    """

    topology: Topology
    rate: Any
    gradients: int | None
    seconds: float | None
    pairing: str
    random_times: bool
    max_backlog: int | None
    snapshots: int
    keep_snapshots: bool
    transport: str
    timeout: float
    seed: int
    nonfinite: NonFinite = "raise"
    rates: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "rates", edge_rates(self.topology, self.rate))
        if (most := self.rates.sum(1).max(initial=0)) > _MOST_RATE:
            raise ValueError(
                f"run: {most:.3g} averagings per gradient are more than a worker can "
                f"count; rate must be at most {_MOST_RATE:g}."
            )
        known_names = {"pairing": PAIRINGS, "transport": tuple(TRANSPORTS)}
        for name, known in known_names.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"run: {name} must be one of {known}, got {value!r}.")
        check_choice("run: nonfinite", self.nonfinite, NonFinite)
        if self.pairing == "edge_clocks" and not self.random_times:
            raise ValueError(
                "run: the clocks of pairs tick at random times; random_times=False is "
                'for pairing="first_free" and "fixed_order".'
            )
        if self.pairing != "edge_clocks" and np.ndim(self.rate):
            raise ValueError(
                f'run: pairing="{self.pairing}" takes one rate for all; a matrix is '
                'for "edge_clocks".'
            )
        if self.gradients is None and self.seconds is None:
            raise ValueError("run: give the number of gradients, or the seconds.")
        for name, least in (
            ("gradients", 1),
            ("max_backlog", 0),
            ("snapshots", 1),
            ("seed", 0),
            ("seconds", None),
            ("timeout", None),
        ):
            self._check(name, getattr(self, name), least)

    def _check(self, name: str, value: Any, least: int | None) -> None:
        """Checks that a value is a whole number, at least `least`.

        If `least` is None, the value only has to be a positive number.
        """
        if value is None and name in ("gradients", "max_backlog", "seconds"):
            return
        fits = is_number if least is None else is_whole
        what = "positive number" if least is None else f"whole number from {least} on"
        if not fits(value):
            raise TypeError(f"run: {name} must be a {what}, got {value!r}.")
        if not (0 < value < math.inf if least is None else least <= value):
            raise ValueError(f"run: {name} must be a {what}, got {value!r}.")
        if name == "timeout" and value > _LONGEST:
            raise ValueError(
                f"run: timeout must be at most {_LONGEST:g} seconds, got {value!r}."
            )

    @property
    def common(self) -> dict[str, str]:
        """The settings, which must be equal on all ranks, as texts by name.

        The rates take the place of the graph.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["topology"], fields["rate"]
        fields["rates"] = fields["rates"].tolist()
        return {name: str(value) for name, value in fields.items()}

    def share(self, gradients: int, seconds: float) -> float:
        """Returns the share of the run that is over, 1 at its end."""
        shares = []
        if self.gradients:
            shares.append(gradients / self.gradients)
        if self.seconds:
            shares.append(seconds / self.seconds)
        return max(shares)

    def make_pairing(self, rank: int, rng: np.random.Generator) -> Pairing:
        """Makes one worker's part of the protocol."""
        neighbors = np.flatnonzero(self.rates[rank]).tolist()
        if self.pairing == "edge_clocks":
            return EdgeClocks(rank, neighbors)
        if self.pairing == "first_free":
            return FirstFree(rank, neighbors, lambda peers: int(rng.choice(peers)))
        rounds = [r[rank] for r in self.topology.rounds]
        return FixedOrder(rank, [p for p in rounds if p in neighbors])

    def make_clocks(
        self, rank: int, start: float, rng: np.random.Generator
    ) -> "Clocks":
        """Makes one worker's clocks.

        Each worker of a pair has a clock for the other one, with half of the pair's
        rate.
        """
        if self.pairing == "edge_clocks":
            rates = {peer: r / 2 for peer, r in enumerate(self.rates[rank].tolist())}
        else:
            rates = {None: float(self.rate) if self.rates[rank].any() else 0.0}
        return Clocks(rates, start, self.random_times, rng)


class Clocks:
    """Draws, in a worker's own time, when the worker wants to average.

    Args:
      rates: number of ticks of each clock per gradient. Either there is a clock for
        each neighbour, whose key is the neighbour's rank, or one clock with the key
        None.
      start: the worker's own time now.
      random: whether intervals are exponentially distributed; otherwise constant.
      rng: generator of the random intervals.
    """

    def __init__(
        self,
        rates: Mapping[Any, float],
        start: float,
        random: bool,
        rng: np.random.Generator,
    ):
        """Draws the first tick of each clock."""
        self._rates = {key: rate for key, rate in rates.items() if rate > 0}
        self._random, self._rng = random, rng
        self._next = {key: start + self._interval(key) for key in self._rates}

    def _interval(self, key: int) -> float:
        mean = 1 / self._rates[key]
        return float(self._rng.exponential(mean)) if self._random else mean

    @property
    def next(self) -> float:
        """When the next clock ticks; infinite if there is none."""
        return min(self._next.values(), default=math.inf)

    def ticks(self, now: float) -> list[Any]:
        """Returns the key of the clock of each new tick up to `now`, in order."""
        due = []
        for key in self._next:
            while self._next[key] <= now:
                due.append((self._next[key], key))
                self._next[key] += self._interval(key)
        return [key for _, key in sorted(due, key=lambda tick: tick[0])]


def check_participants(algorithm: Any, communicator: Any, topology: Any) -> Any:
    """Checks the parts of a run; returns MPI's communicator of the processes.

    Raises:
      TypeError: if an argument is of a kind that a run cannot use.
      ValueError: if the topology is not of the communicator's size.
    """
    if not isinstance(algorithm, EventTransformation):
        raise TypeError(
            "run needs an asynchronous algorithm, djax.acid(...) or djax.adpsgd(...), "
            f"got {algorithm!r}."
        )
    if not hasattr(communicator, "host_comm"):
        raise TypeError(
            "run needs one process per worker: mpirun and djax.communicators.mpi(). "
            "Use djax.asynchronous.simulate on one machine without; got "
            f"{communicator!r}."
        )
    check_undirected("run", topology)
    if topology.size != communicator.size:
        raise ValueError(
            f"run: the topology has {topology.size} workers, but mpirun started "
            f"{communicator.size} ranks."
        )
    return communicator.host_comm
