"""What the workers of a run did, as numbers, pictures and timelines."""

# This file is longer than 300 lines because it is one public class, whose properties
# describe their arrays.

import dataclasses
import json
import pathlib
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .._plot import (
    draw_averagings,
    draw_bars,
    draw_staleness,
    finish_timeline,
    make_axes,
)
from ..simulator import NOBODY, Events
from ._settings import Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What all workers did in an asynchronous run, with the times of all events.

    Earlier runs that this run resumes are only counted, in `gradients_before`. Lost
    workers have no records; their entries in arrays are zero or empty.

    Attributes:
      size: number of workers.
      rate: `float64[n]`, the requested number of averagings of each worker per
        gradient.
      lost: for each lost worker the reason, by rank.
      records: what each worker noted, by rank and then by name. Times are seconds since
        the run began.

        * `before`: `int32[1]`, number of gradients of earlier runs.
        * `gradients`: `float64[gradients, 2]`, when each gradient began and ended.
        * `staleness`: `int32[gradients]`, number of averagings between these times.
        * `averagings`: `float64[averagings, 2]`, when each averaging began and ended.
        * `peers`: `int32[averagings]`, the neighbours of the averagings.
        * `snapshots`: `float64[snapshots]`, when snapshots were taken.
        * `snapshot_numbers`: `int32[snapshots]`, their numbers among those requested.
        * `sketches`: `float32[snapshots, k]`, random projections of the models, or
          the models themselves if they are small.
        * `nonfinite`: `int32[...]`, numbers of the gradients that were not finite or
          led to a model that was not finite.
        * `finite`: `int32[1]`, whether the model is finite in the end.
    """

    size: int
    rate: np.ndarray
    lost: dict[int, str]
    records: dict[int, dict[str, np.ndarray]]

    @classmethod
    def of(
        cls,
        settings: Settings,
        records: dict[int, dict[str, np.ndarray]],
        lost: dict[int, str],
    ) -> "Report":
        """Makes the report of the records that the workers have exchanged."""
        if settings.pairing == "edge_clocks":
            rate = settings.rates.sum(1)
        else:
            rate = np.where(settings.rates.any(1), float(settings.rate), 0.0)
        return cls(settings.topology.size, rate, dict(lost), records)

    def _each(self, function: Callable[[dict[str, np.ndarray]], Any]) -> np.ndarray:
        values = np.zeros(self.size)
        for rank, record in self.records.items():
            values[rank] = function(record)
        return values

    @cached_property
    def ends(self) -> np.ndarray:
        """`float64[n]`: when each worker's last gradient was applied, in seconds."""
        return self._each(lambda r: r["gradients"][-1, 1] if len(r["gradients"]) else 0)

    @property
    def seconds(self) -> float:
        """Seconds from the beginning of the run until the last gradient was applied."""
        return float(self.ends.max(initial=0.0))

    @cached_property
    def gradient_counts(self) -> np.ndarray:
        """`int64[n]`: number of gradients of each worker."""
        return self._each(lambda r: len(r["gradients"])).astype(np.int64)

    @cached_property
    def gradients_before(self) -> np.ndarray:
        """`int64[n]`: number of gradients of each worker in earlier runs."""
        return self._each(lambda r: r["before"][0]).astype(np.int64)

    @cached_property
    def nonfinite_counts(self) -> np.ndarray:
        """`int64[n]`: how many gradients were not finite, or led to such a model."""
        return self._each(lambda r: len(r.get("nonfinite", ()))).astype(np.int64)

    @property
    def left_out(self) -> list[int]:
        """The workers whose last model is not finite, which the mean leaves out.

        If no worker's model is finite, the mean is that of all models.
        """
        return sorted(
            rank for rank, r in self.records.items() if not np.all(r.get("finite", 1))
        )

    @cached_property
    def pair_counts(self) -> np.ndarray:
        """`int64[n, n]`, symmetric: how often each pair averaged."""
        counts = np.zeros((self.size, self.size), np.int64)
        for rank, record in self.records.items():
            counts[rank] = np.bincount(record["peers"], minlength=self.size)
        # The averagings of a lost worker are known from its neighbours' records.
        return np.maximum(counts, counts.T)

    @property
    def averaging_counts(self) -> np.ndarray:
        """`int64[n]`: number of averagings of each worker."""
        return self.pair_counts.sum(1)

    @cached_property
    def realized_rate(self) -> np.ndarray:
        """`float64[n]`: averagings of each worker per gradient, while it computed.

        After its last gradient, a worker averages only because others request it. These
        averagings are not counted.
        """

        def rate(record):
            if not len(record["gradients"]):
                return 0.0
            end = record["gradients"][-1, 1]
            return (record["averagings"][:, 1] <= end).sum() / len(record["gradients"])

        return self._each(rate)

    @property
    def mean_rate(self) -> float:
        """Averagings of a worker per gradient, as a mean over all gradients."""
        total = (self.realized_rate * self.gradient_counts).sum()
        return float(total / max(1, self.gradient_counts.sum()))

    @cached_property
    def gradients_per_second(self) -> np.ndarray:
        """`float64[n]`: gradients of each worker per second, while it computed."""
        return self.gradient_counts / np.maximum(self.ends, 1e-9)

    @cached_property
    def averagings_per_second(self) -> np.ndarray:
        """`float64[n]`: averagings of each worker per second, while it computed."""
        return self.realized_rate * self.gradients_per_second

    @cached_property
    def idle_share(self) -> np.ndarray:
        """`float64[n]`: share of its time in which each worker computed no gradient.

        In this time the worker may have loaded data or, with a `max_backlog`, waited
        for averagings.
        """
        busy = self._each(lambda r: np.diff(r["gradients"], axis=1).sum())
        return np.where(self.ends > 0, 1 - busy / np.maximum(self.ends, 1e-9), 0.0)

    @cached_property
    def staleness(self) -> np.ndarray:
        """`int64[gradients]`: averagings during each gradient, worker by worker.

        Counted are the averagings of the worker from the moment when it takes its model
        for the gradient until the gradient is applied. Averagings for which the worker
        waits between two gradients do not count, since the next gradient is computed
        at the model after them.
        """
        parts = [record["staleness"] for _, record in sorted(self.records.items())]
        return np.concatenate([*parts, np.zeros(0, np.int32)]).astype(np.int64)

    @cached_property
    def snapshot_numbers(self) -> np.ndarray:
        """`int64[snapshots]`: numbers of the snapshots that all workers took.

        If a run was resumed, the snapshots that were due before the resumption are
        missing, except for the last of them.
        """
        found = [set(r["snapshot_numbers"].tolist()) for r in self.records.values()]
        return np.array(sorted(set.intersection(*found)), np.int64)

    @cached_property
    def snapshot_times(self) -> np.ndarray:
        """`float64[snapshots]`: times of the snapshots, means over the workers."""
        return self._of_snapshots("snapshots").mean(0)

    @cached_property
    def consensus_distance(self) -> np.ndarray:
        r"""`float64[snapshots]`: the variance of the models at the snapshots.

        For models of more than 1,024 coordinates it is estimated to a few percent. The
        workers take a snapshot at slightly different times, since no worker is stopped
        for it. Models that are not finite are left out; if no model is finite, the
        result is NaN.
        """
        sketches = self._of_snapshots("sketches").astype(np.float64)
        finite = np.asarray(np.isfinite(sketches).all(2))
        count = finite.sum(0)
        with np.errstate(invalid="ignore"):  # 0 / 0, where no model is finite.
            rows = np.where(finite[:, :, None], sketches, 0.0)
            differences = rows - rows.sum(0) / count[:, None]
            squares = np.where(finite, (differences**2).sum(2), 0.0)
            return squares.sum(0) / count

    def _of_snapshots(self, name: str) -> np.ndarray:
        known, records = self.snapshot_numbers, self.records.values()
        rows = [r[name][np.isin(r["snapshot_numbers"], known)] for r in records]
        return np.stack(rows)

    @cached_property
    def events(self) -> Events:
        """All gradients and averagings, at the times when they ended, in seconds.

        Events know no beginnings, so that each gradient seems to begin when the one
        before has ended. If workers loaded data or waited in between, as they do with a
        `max_backlog`, the staleness and the timeline of this report are right, and
        those of the events count the waiting as part of the gradients.
        """
        rows = []
        for rank, record in self.records.items():
            rows += [(end, rank, NOBODY) for end in record["gradients"][:, 1]]
            ends, peers = record["averagings"][:, 1], record["peers"]
            rows += [
                (end, rank, peer)
                for end, peer in zip(ends, peers, strict=True)
                if rank < peer or peer in self.lost
            ]
        rows.sort()
        time, worker, peer = np.array(rows).T if rows else np.zeros((3, 0))
        return Events(self.size, time, worker, peer, max(time, default=0.0))

    def plot_timeline(
        self, ax: "Axes | None" = None, until: float | None = None
    ) -> "Axes":
        """Draws each worker's gradients as bars and the averagings as lines.

        Args:
          ax: where to draw; by default new axes.
          until: end of the picture in seconds; by default the end of the run.

        Returns:
          The axes.
        """
        ax, events = make_axes(ax), self.events
        until = events.duration if until is None else until
        for rank, record in self.records.items():
            begin, end = record["gradients"].T
            draw_bars(ax, rank, begin, end, until)
        seen = ~events.is_gradient & (events.time <= until)
        draw_averagings(ax, events.time[seen], events.worker[seen], events.peer[seen])
        finish_timeline(ax, self.size, until).set_xlabel("seconds")
        return ax

    def plot_staleness(self, ax: "Axes | None" = None) -> "Axes":
        """Draws a histogram of the staleness, and returns its axes."""
        ax = make_axes(ax)
        draw_staleness(ax, self.staleness)
        return ax

    def save_trace(self, path: str | pathlib.Path) -> None:
        """Writes a timeline in Chrome's format, which https://ui.perfetto.dev opens.

        The timeline shows each worker as a process with two threads, one for gradients
        and one for averagings. All gradients have one name, as have all averagings, so
        that the viewer can add them up. The number of a gradient or averaging, and the
        neighbour, are in its arguments.

        Args:
          path: the file to write, usually with the ending `.json`.
        """
        events = []
        for rank, record in sorted(self.records.items()):
            events.append(_named("process_name", rank, 0, f"worker {rank}"))
            for thread, name in enumerate(("gradients", "averagings")):
                events.append(_named("thread_name", rank, thread, name))
            gradients = zip(record["gradients"], record["staleness"], strict=True)
            for k, (times, stale) in enumerate(gradients):
                number = int(self.gradients_before[rank]) + k + 1
                details = {"number": number, "averagings meanwhile": int(stale)}
                events.append(_span(rank, 0, "gradient", times, details))
            meetings = zip(record["averagings"], record["peers"], strict=True)
            for k, (times, peer) in enumerate(meetings):
                details = {"number": k + 1, "peer": int(peer)}
                events.append(_span(rank, 1, "averaging", times, details))
        pathlib.Path(path).write_text(json.dumps({"traceEvents": events}))

    def __repr__(self) -> str:
        lost = f", lost {sorted(self.lost)}" if self.lost else ""
        if self.left_out:
            lost += f", not finite {self.left_out}"
        alive = sorted(self.records)
        return (
            f"Report({self.size} workers{lost}: {self.gradient_counts.sum()} gradients "
            f"and {self.pair_counts.sum() // 2} averagings in {self.seconds:.4g} s; "
            f"{self.mean_rate:.3g} averagings of a worker per gradient, "
            f"{self.rate[alive].mean():.3g} asked)"
        )


def _named(kind: str, worker: int, thread: int, name: str) -> dict[str, Any]:
    """Returns the event that gives a process or a thread of the timeline its name."""
    return dict(name=kind, ph="M", pid=worker, tid=thread, args={"name": name})


def _span(
    worker: int, thread: int, name: str, times: np.ndarray, details: dict[str, Any]
) -> dict[str, Any]:
    """Returns the event of a time span; Chrome counts microseconds."""
    begin, duration = times[0].item() * 1e6, (times[1] - times[0]).item() * 1e6
    place = dict(pid=worker, tid=thread, ts=begin, dur=duration)
    return dict(name=name, ph="X", args=details, **place)
