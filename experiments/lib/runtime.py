"""Trains asynchronous workers in real time, with one process for each worker."""

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

import djax
from djax import Topology, asynchronous
from djax.transport import Absent, meet

from .asynchronous import ALGORITHMS, EventJob
from .data import Prefetch
from .divergence import check_losses, in_own_words, watch_all
from .errors import UsageError
from .evaluation import assess_one, make_assess
from .options import changed
from .ranges import flag
from .report import RunFolder
from .signals import Termination, stopped_and_saved, stopped_unsaved
from .trainer import Record, Records, Rows, chunk_steps


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Options of a2cid2 and adpsgd in real time, under mpirun."""

    pairing: Literal["edge_clocks", "first_free", "fixed_order"] = "edge_clocks"
    """How neighbours find each other: by a Poisson clock for each pair, with the first
    neighbour that is free, or in the order of the graph's matchings."""
    random_times: bool = True
    """Average at Poisson times. Otherwise averagings are equally spaced, which is not
    possible with edge_clocks."""
    max_backlog: int | None = 1
    """Begin a gradient only if at most this many averagings are due. None never waits,
    and drops averagings that the network or the processor cannot keep up with."""
    seconds: float | None = None
    """End after this many seconds, even if --epochs are not completed."""
    transport: Literal["mpi", "zmq"] = "mpi"
    """How messages travel. With zmq the others continue when a worker is lost, under
    mpirun -disable-auto-cleanup -n ... python -m djax.guard -m experiments.train."""
    timeout: float = 60.0
    """Seconds without any message after which a worker counts as lost."""


def check_runtime(options: Runtime, algorithm: str, live: bool) -> None:
    """Raises UsageError for options that conflict or would be ignored."""
    for name in sorted(changed(options)) if not live else ():
        raise UsageError(
            f"{flag(name)} is for workers in real time: --algorithm "
            f"{' or '.join(ALGORITHMS)} under mpirun; --algorithm {algorithm} here has "
            "no use for it."
        )
    if options.pairing == "edge_clocks" and not options.random_times:
        raise UsageError(
            "--no-random-times needs --pairing first_free or fixed_order: the clocks "
            "of pairs tick at random times."
        )


@dataclasses.dataclass
class Live(EventJob):
    """A training in real time, with one process for each worker.

    Copies of the models are kept at several times and evaluated at the end, so that no
    worker is stopped by an evaluation.

    Attributes:
      rate: averagings of a worker per gradient.
      steps: mean number of gradients of a worker.
      jit: whether the task's gradient is compiled; False for a plain Python function.
      local: connects the workers of a group. `communicator` then connects those of
        different groups, and a worker of the topology is a group.
    """

    topology: Topology
    options: Runtime
    rate: float
    steps: int
    seed: int
    checkpoints: asynchronous.Checkpoints | None = None
    jit: bool = True
    local: djax.Communicator | None = None
    report: asynchronous.Report = dataclasses.field(init=False)
    _absent: list[int] = dataclasses.field(init=False, default_factory=list)

    @property
    def ranks(self) -> Sequence[int]:
        """The ranks that were not lost; known once the run is over."""
        if self.local is not None:  # If a rank is lost, so is the run.
            return range(self.communicator.whole.size)
        return sorted(set(self.report.records) - set(self._absent))

    @property
    def told(self) -> asynchronous.Report:
        """See :class:`experiments.lib.asynchronous.EventJob`."""
        return self.report

    @property
    def counted(self) -> list[int]:
        """See :class:`experiments.lib.asynchronous.EventJob`."""
        return sorted(self.report.records)

    @property
    def reported(self) -> bool:
        """Whether the workers have exchanged their records, as they do at every end."""
        return hasattr(self, "report")

    def train(self, evaluations: int, advance: Callable[[float], object]) -> Records:
        """See :class:`experiments.lib.trainer.Job`.

        The first losses of a resumed run are unknown, so that only losses that are not
        finite count as a divergence there.
        """
        termination, gradients = Termination(), self.topology.size * self.steps
        found = self._run(gradients, evaluations, advance, termination)
        self.report, self.events = found.report, found.report.events
        done = int(self.report.gradients_before.sum())
        if done >= gradients and self.communicator.local_ranks[0] == 0:
            print(
                "nothing is left to do: by their checkpoints the workers have "
                f"computed {done} of {gradients} gradients; to go on, start the same "
                "with larger --epochs",
                file=sys.stderr,
                flush=True,
            )
        if self.options.transport == "zmq" and not self.report.lost:
            comm = getattr(self.communicator, "host_comm")  # noqa: B009
            try:
                meet(comm, "the evaluation", self.options.timeout)
            except Absent as error:  # Died after the run.
                self._absent = error.ranks
        # If workers are lost, nothing may wait for all workers.
        alone = bool(self.report.lost or self._absent)
        own = termination.number, list(found.unsaved)
        everyone = [own] if alone else self.communicator.gather([own])
        told = [number for number, _ in everyone if number]
        unsaved = [text for _, texts in everyone for text in texts]
        yield from (self._survey_survivors if alone else self._survey)(found)
        if told:
            if self.checkpoints is None:
                why = "nothing is saved, as there is no --checkpoints"
                raise stopped_unsaved(told[0], why)
            raise stopped_and_saved(told[0], self.checkpoints.directory, unsaved)
        self.workers, self.unsaved = found.workers, unsaved

    def _run(
        self,
        gradients: int,
        snapshots: int,
        advance: Callable[[float], object],
        termination: Termination,
    ) -> asynchronous.Outcome:
        """Runs this process's worker beside the others."""
        task, chunk = self.task, chunk_steps(self.task)
        epoch, passed = self.topology.size * task.steps_per_epoch, 0

        def show(done):
            nonlocal passed
            now = min(done, gradients)
            advance((now - passed) / epoch)
            passed = now

        with (
            in_own_words(),
            warnings.catch_warnings(),
            termination,
            Prefetch(lambda i: task.batches(i * chunk, (i + 1) * chunk)) as batches,
        ):
            # `train` prints this warning in terms of the command line.
            warnings.filterwarnings("ignore", ".* none is left to compute")
            return asynchronous.run(
                self.algorithm,
                task.gradient_fn,
                batches,
                self.communicator,
                self.topology,
                self.params,
                local=self.local,
                gradients=gradients,
                rate=self.rate,
                **dataclasses.asdict(self.options),
                model_state=jax.tree.map(jnp.asarray, task.model_state),
                snapshots=snapshots,
                keep_snapshots=True,
                progress=show,
                stop=lambda: termination.number > 0,
                checkpoints=self.checkpoints,
                jit=self.jit,
                seed=self.seed,
            )

    def _survey(self, found: asynchronous.Outcome) -> Iterator[Record]:
        """Evaluates the kept models and the last one, together with all workers."""
        told, events = self.report, self.events
        own = found.metrics["loss"][0].tolist() if found.metrics else []
        everyones = self._of_groups(self.communicator.gather([own]))
        workers = events.worker[events.is_gradient]
        ends = events.time[events.is_gradient]
        losses = np.zeros(len(workers))
        for rank, each in enumerate(everyones):
            losses[workers == rank] = each
        check_losses(losses, workers, f"within {told.seconds:.3g} s")
        assess = make_assess(self.task, self.communicator.whole)
        models = {snapshot.number: snapshot.params for snapshot in found.snapshots}
        kept = zip(told.snapshot_times, told.snapshot_numbers, strict=True)
        # A member of a group may have made no snapshot where another one has.
        moments = [(float(time), models[n]) for time, n in kept if n in models]
        moments[-1:] = [(told.seconds, found.workers.params)]
        before = int(told.gradients_before.sum())
        for time, params in moments:
            done = losses[: np.searchsorted(ends, time, side="right")]
            yield self.measure(time, done, assess(params), time, before)
        if not before:
            watch_all(losses, told.size)

    def _of_groups(self, losses: list[list[float]]) -> list[list[float]]:
        """Returns each worker's losses; those of a group are the means of its ranks."""
        if self.local is None:
            return losses
        members = [[] for _ in range(self.communicator.size)]
        groups = self.communicator.whole.gather([self.communicator.rank()])
        for group, each in zip(groups, losses, strict=True):
            members[group].append(each)
        return [np.mean(each, axis=0).tolist() for each in members]

    def _survey_survivors(self, found: asynchronous.Outcome) -> Iterator[Record]:
        """Evaluates the mean model of the remaining workers, in this process alone."""
        task, told = self.task, self.report
        own = np.asarray(found.metrics["loss"][0] if found.metrics else [])
        workers = np.full(len(own), self.communicator.local_ranks[0])
        check_losses(own, workers, f"within {told.seconds:.3g} s")
        averaged = assess_one(task, jax.tree.map(lambda x: x[0], found.params))
        step = float((told.gradients_before + told.gradient_counts).sum()) / told.size
        record = {
            "epoch": step / task.steps_per_epoch,
            "step": step,
            "averaged": averaged[task.score],
            "averaged_loss": averaged["loss"],
            "consensus_distance": float(told.consensus_distance[-1]),
            "megabytes": float(self._megabytes().mean()),
            "time": told.seconds,
            "seconds": told.seconds,
        }
        self.history.append(record)
        yield record

    def describe(self) -> Rows:
        """Returns rows of the final table: speeds, averagings, and lost workers."""
        told, alive = self.report, self.counted
        lost, limits = ", ".join(map(str, sorted(told.lost))), []
        if told.gradients_before.any():
            limits.append(("the rows below count from", "the resumption of the run"))
        if lost:
            limits.append(("the rows below leave out", f"lost workers: {lost}"))
        speed, idle = told.gradients_per_second[alive], told.idle_share[alive]
        speeds = f"{speed.mean():.4g} ({speed.min():.4g})"
        rates = f"{told.mean_rate:.4g} ({told.rate[alive].mean():.4g})"
        waits = f"{idle.mean():.1%} ({idle.max():.1%})"
        return [
            *limits,
            ("seconds", f"{told.seconds:.4g}"),
            ("gradients per second and worker, mean (slowest)", speeds),
            ("averagings per gradient, mean (asked)", rates),
            ("idle share of the time, mean (most)", waits),
            *super().describe(),
            *((f"lost: worker {rank}", reason) for rank, reason in told.lost.items()),
            *((f"lost: worker {rank}", "after the run") for rank in self._absent),
        ]

    def save(self, folder: RunFolder, title: str) -> None:
        """Draws the events, and writes a timeline for Perfetto."""
        super().save(folder, title)
        if folder.active:
            self.report.save_trace(folder.path / "trace.json")
