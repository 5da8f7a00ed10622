"""Training without waiting, in real time, one process a worker."""

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import djax
from djax import asynchronous
from djax.transport._start import (
    Absent,
    meet,
)

from .asynchronous import (
    ALGORITHMS,
    changed,
    describe_averagings,
    megabytes,
    progress,
    save_events,
    spread,
    traffic,
)
from .checkpoints import Saving, Termination
from .data import Prefetch
from .divergence import check_losses, in_own_words, watch_all
from .errors import UsageError
from .evaluation import assess_one, make_assess
from .report import RunFolder
from .tasks import Task
from .trainer import Outcome, Stopped, chunk_steps, describe_signal


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Real time, of a2cid2 and adpsgd under mpirun."""

    pairing: Literal["edge_clocks", "first_free", "fixed_order"] = "edge_clocks"
    """How neighbours find each other: by Poisson clocks of the pairs, whoever is free
    first, or one after another in the order of the graph's matchings."""
    random_times: bool = True
    """Poisson times; if not, constant gaps, which edge_clocks do not have."""
    max_backlog: int | None = 1
    """Begin a gradient only if at most so many averagings are due; None never waits,
    and leaves out averagings that the network or the processor cannot keep up with."""
    seconds: float | None = None
    """End after so long, if --epochs are not over before."""
    transport: Literal["mpi", "zmq"] = "mpi"
    """How messages travel; with zmq the others go on when a worker is lost, under
    mpirun -disable-auto-cleanup -n ... python -m djax.guard -m experiments.train."""
    timeout: float = 60.0
    """Seconds without a sign of life after which a worker is lost."""


def check_runtime(options: Runtime, algorithm: str, live: bool) -> None:
    """Raises UsageError for options that do not fit together, or would be ignored.

    Args:
      options: from the command line.
      algorithm: likewise.
      live: whether there is real time.
    """
    for flag in sorted(changed(options)) if not live else ():
        raise UsageError(
            f"{flag} is for workers in real time: --algorithm "
            f"{' or '.join(ALGORITHMS)} under mpirun; --algorithm {algorithm} here has "
            "no use for it."
        )
    if options.pairing == "edge_clocks" and not options.random_times:
        raise UsageError(
            "--no-random-times needs --pairing first_free or fixed_order: the clocks "
            "of pairs tick at random times."
        )
    for name in ("seconds", "timeout"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            flag = f"--{name}".replace("_", "-")
            raise UsageError(f"{flag} {value} must be positive.")
    if options.max_backlog is not None and options.max_backlog < 0:
        raise UsageError(f"--max-backlog {options.max_backlog} must not be negative.")


class Live:
    """A training in real time.

    Args:
      task: what is learned.
      algorithm: what every worker does.
      communicator: of MPI.
      topology: who averages with whom.
      options: from the command line.
      saving: likewise.
      rate: averagings of a worker per gradient.
      steps: gradients of a worker, on average.
      seed: of the averagings.
      jit: compile the task's gradient; False for a plain Python function.
      identity: what a run has to have in common with the one that it goes on with.
    """

    def __init__(
        self,
        task: Task,
        algorithm: asynchronous.EventTransformation,
        communicator: djax.Communicator,
        topology: djax.Topology,
        options: Runtime,
        saving: Saving,
        rate: float,
        steps: int,
        seed: int,
        jit: bool = True,
        identity: Mapping[str, str] | None = None,
    ):
        """Nothing has happened."""
        self._identity = dict(identity or {})
        self._task, self._communicator, self._options = task, communicator, options
        self._algorithm, self._topology, self._rate = algorithm, topology, rate
        self._gradients, self._seed = topology.size * steps, seed
        self._jit, self._saving = jit, saving
        self._report: asynchronous.Report | None = None
        self._absent: list[int] = []

    @property
    def report(self) -> asynchronous.Report:
        """What the workers did; once the run is over."""
        assert self._report is not None
        return self._report

    @property
    def ranks(self) -> list[int]:
        """The workers that came to the end; once the run is over."""
        return sorted(set(self.report.records) - set(self._absent))

    def train(
        self,
        params: Any,
        evaluations: int,
        report: Callable[[dict[str, Any]], None],
        advance: Callable[[float], object],
    ) -> Outcome:
        """Trains this process's worker beside the others.

        The models are kept as they were at several times, and evaluated in the end, so
        that nobody is stopped. When workers have been lost, only the mean of the
        others' models is evaluated.

        Args:
          params: the first model, with its leading axis.
          evaluations: how many, evenly spread over the run.
          report: called with each record of the history, as those of virtual clocks;
            `time` is in seconds.
          advance: called with the epochs since the last call.

        Returns:
          As of :func:`experiments.lib.trainer.train`.

        Raises:
          Diverged: if the loss of a gradient is not finite, or if the losses were far
            above their start and have not come back by the end; a run that was resumed
            does not know its start.
          Stopped: after SIGTERM or Ctrl-C, with what there is evaluated.
          CheckpointError: if checkpoints cannot be used.
        """
        task, options = self._task, self._options
        epoch, passed = self._topology.size * task.steps_per_epoch, 0
        chunk = chunk_steps(task)

        def show(gradients):
            nonlocal passed
            now = min(gradients, self._gradients)
            advance((now - passed) / epoch)
            passed = now

        saving = self._make_checkpoints()
        with (
            in_own_words(),
            warnings.catch_warnings(),
            Termination() as termination,
            Prefetch(lambda i: task.batches(i * chunk, (i + 1) * chunk)) as batches,
        ):
            # Said below, in the words of the command line.
            warnings.filterwarnings("ignore", ".* none is left to compute")
            outcome = asynchronous.run(
                self._algorithm,
                task.gradient_fn,
                batches,
                self._communicator,
                self._topology,
                params,
                gradients=self._gradients,
                seconds=options.seconds,
                rate=self._rate,
                pairing=options.pairing,
                random_times=options.random_times,
                max_backlog=options.max_backlog,
                model_state=jax.tree.map(jnp.asarray, task.model_state),
                looks=evaluations,
                keep_looks=True,
                progress=show,
                stop=lambda: termination.requested,
                checkpoints=saving,
                transport=options.transport,
                timeout=options.timeout,
                jit=self._jit,
                seed=self._seed,
            )
        self._report = outcome.report
        self._say_what_is_left()
        if options.transport == "zmq" and not self._report.lost:
            self._look_around()
        told, unsaved = self._gather(termination, outcome.unsaved)
        survey = self._survey_survivors if self._alone else self._survey
        history = []
        for record in survey(outcome):
            history.append(record)
            report(record)
        if told:
            raise self._stopped(told[0], unsaved)
        return Outcome(outcome.workers, history, unsaved)

    def _make_checkpoints(self) -> asynchronous.Checkpoints | None:
        saving = self._saving
        if saving.checkpoints is None:
            return None
        return asynchronous.Checkpoints(
            saving.checkpoints,
            saving.checkpoint_every,
            saving.keep_checkpoints,
            saving.resume,
            self._identity,
        )

    def _say_what_is_left(self) -> None:
        """Says so if the checkpoints already had all gradients."""
        done = int(self.report.gradients_before.sum())
        if done >= self._gradients and self._communicator.local_ranks[0] == 0:
            print(
                f"nothing is left to do: by their checkpoints the workers have "
                f"computed {done} of {self._gradients} gradients; to go on, start the "
                "same with larger --epochs",
                file=sys.stderr,
                flush=True,
            )

    def _look_around(self) -> None:
        """Notes who has died since the run: others evaluate without it."""
        try:
            comm = getattr(self._communicator, "host_comm")  # noqa: B009
            meet(comm, "the evaluation", self._options.timeout)
        except Absent as error:
            self._absent = error.ranks

    @property
    def _alone(self) -> bool:
        """Whether workers are lost, so that no communication may wait for all."""
        return bool(self.report.lost or self._absent)

    def _gather(
        self, termination: Termination, unsaved: Sequence[str]
    ) -> tuple[list[int], list[str]]:
        """The signals by which any worker was told to end, and failed checkpoints."""
        own = termination.requested and termination.number, list(unsaved)
        everyone = [own] if self._alone else self._communicator.gather([own])
        told = [number for number, _ in everyone if number]
        return told, [text for _, texts in everyone for text in texts]

    def _stopped(self, number: int, unsaved: Sequence[str]) -> Stopped:
        """What is said of a run that a signal ends; all have been saved by now."""
        how, code = describe_signal(number)
        if self._saving.checkpoints is None:
            return Stopped(
                f"stopped by {how}; nothing is saved, as there is no --checkpoints",
                128 + number,
            )
        rest = f"start the same with --checkpoints {self._saving.checkpoints} --resume"
        if unsaved:
            return Stopped(
                f"stopped by {how}, but not all checkpoints could be saved: "
                f"{unsaved[-1]}; to go on from the last ones, {rest}",
                code or 1,
            )
        return Stopped(f"stopped by {how}; to go on, {rest}", code)

    def _survey(self, outcome: asynchronous.Outcome) -> Iterator[dict[str, Any]]:
        """Evaluates what was kept, and the end, on all workers together."""
        told, events = self.report, self.report.events
        own = outcome.metrics["loss"][0].tolist() if outcome.metrics else []
        everyones = self._communicator.gather([own])
        workers = events.worker[events.is_gradient]
        ends = events.time[events.is_gradient]
        losses = np.zeros(len(workers))
        for rank, found in enumerate(everyones):
            losses[workers == rank] = found
        check_losses(losses, workers, f"within {told.seconds:.3g} s")
        assess = make_assess(self._task, self._communicator)
        kept = {look.number: look.params for look in outcome.looks}
        moments = [
            (float(time), kept[number])
            for time, number in zip(told.look_times, told.look_numbers, strict=True)
        ]
        moments[-1:] = [(told.seconds, outcome.workers.params)]
        for time, params in moments:
            done = losses[: np.searchsorted(ends, time, side="right")]
            yield {
                **progress(
                    self._task, told.size, done, int(told.gradients_before.sum())
                ),
                "time": time,
                "megabytes": megabytes(events, params, time)[0],
                **assess(params),
                "seconds": time,
            }
        if not told.gradients_before.any():
            watch_all(losses, told.size)

    def _survey_survivors(
        self, outcome: asynchronous.Outcome
    ) -> Iterator[dict[str, Any]]:
        """Evaluates what can be evaluated without those that are lost."""
        task, told = self._task, self.report
        own = np.asarray(outcome.metrics["loss"][0] if outcome.metrics else [])
        workers = np.full(len(own), self._communicator.local_ranks[0])
        check_losses(own, workers, f"within {told.seconds:.3g} s")
        averaged = assess_one(task, jax.tree.map(lambda x: x[0], outcome.params))
        step = float((told.gradients_before + told.gradient_counts).sum()) / told.size
        yield {
            "epoch": step / task.steps_per_epoch,
            "step": step,
            "averaged": averaged[task.score],
            "averaged_loss": averaged["loss"],
            "consensus_distance": float(told.consensus_distance[-1]),
            "time": told.seconds,
            "seconds": told.seconds,
        }

    def megabytes(self, params: Any, history: Any) -> tuple[float, float]:
        """What a worker sent, on average and at most; once the run is over."""
        del history
        return megabytes(self.report.events, params)

    def traffic(self, params: Any, history: Any) -> dict[str, float]:
        """What a worker sent, on average, and the one that sent most."""
        del history
        return traffic(self.report.events, params)

    def describe(self, params: Any, history: Any) -> list[tuple[str, str]]:
        """Rows of the final table: what the workers did."""
        del history
        told, alive = self.report, self.ranks
        speed, idle = told.gradients_per_second[alive], told.idle_share[alive]
        rows = [
            ("seconds", f"{told.seconds:.4g}"),
            ("gradients of a worker, mean (fewest, most)", spread(told.events)),
            (
                "gradients per second and worker, mean (slowest)",
                f"{speed.mean():.4g} ({speed.min():.4g})",
            ),
            (
                "averagings per gradient, mean (asked)",
                f"{told.mean_rate:.4g} ({told.rate[alive].mean():.4g})",
            ),
            (
                "idle share of the time, mean (most)",
                f"{idle.mean():.1%} ({idle.max():.1%})",
            ),
            *describe_averagings(told.events, params),
        ]
        return rows + [
            *((f"lost: worker {rank}", reason) for rank, reason in told.lost.items()),
            *((f"lost: worker {rank}", "after the run") for rank in self._absent),
        ]

    def save(self, folder: RunFolder, title: str) -> None:
        """Draws the events, and writes a timeline for Perfetto."""
        if folder.active:
            save_events(folder, self.report.events, title)
            self.report.save_trace(folder.path / "trace.json")
