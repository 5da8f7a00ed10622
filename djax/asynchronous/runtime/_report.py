"""What the workers of a run did."""

import dataclasses
import json
import pathlib
from functools import cached_property

import numpy as np

from djax.asynchronous.simulator._events import NOBODY, Events

from ._settings import Settings


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Report:
    """Telemetry of an asynchronous run, of all workers that came to its end.

    What a run has resumed from a checkpoint is not in it, but `gradients_before`.
    Rows and entries of lost workers are zero or empty.

    Attributes:
      size: number of workers.
      rate: averagings per gradient that were asked for, `float64[n]`.
      lost: why workers were lost, by rank.
      records: by rank, what each worker noted: `before` (`int32[1]`, gradients of
        earlier runs), `gradients` (`float64[gradients, 2]`, begin and end in seconds
        since the run began), `staleness`
        (`int32[gradients]`, averagings between the two), `averagings`
        (`float64[averagings, 2]`), `peers` (`int32[averagings]`), `looks`
        (`float64[looks]`, times), `look_numbers` (`int32[looks]`), `sketches`
        (`float32[looks, k]`, random projections of the models, or small models
        themselves), `nonfinite` (`int32[]`, numbers of the gradients that were not
        finite or led to a model that is not) and `finite` (`int32[1]`, whether the
        model is finite in the end).
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
        """Puts together what the workers sent each other."""
        if settings.pairing == "edge_clocks":
            rate = settings.rates.sum(1)
        else:
            rate = np.where(settings.rates.any(1), float(settings.rate), 0.0)
        return cls(settings.topology.size, rate, dict(lost), records)

    def _each(self, function) -> np.ndarray:
        values = np.zeros(self.size)
        for rank, record in self.records.items():
            values[rank] = function(record)
        return values

    @cached_property
    def ends(self) -> np.ndarray:
        """`float64[n]`: seconds after which each worker's last gradient was applied."""
        return self._each(lambda r: r["gradients"][-1, 1] if len(r["gradients"]) else 0)

    @property
    def seconds(self) -> float:
        """How long gradients were computed."""
        return float(self.ends.max(initial=0.0))

    @cached_property
    def gradient_counts(self) -> np.ndarray:
        """`int64[n]`: gradients of each worker."""
        return self._each(lambda r: len(r["gradients"])).astype(np.int64)

    @cached_property
    def gradients_before(self) -> np.ndarray:
        """`int64[n]`: gradients of each worker that a checkpoint already had."""
        return self._each(lambda r: r["before"][0]).astype(np.int64)

    @cached_property
    def nonfinite_counts(self) -> np.ndarray:
        """`int64[n]`: gradients that were not finite or led to a model that is not."""
        return self._each(lambda r: len(r.get("nonfinite", ()))).astype(np.int64)

    @property
    def left_out(self) -> list[int]:
        """The workers whose last model is not finite: the mean is of all others.

        If no worker's model is finite, it is the mean of all.
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
        return np.maximum(counts, counts.T)  # A lost worker's are known by the others.

    @property
    def averaging_counts(self) -> np.ndarray:
        """`int64[n]`: averagings of each worker."""
        return self.pair_counts.sum(1)

    @cached_property
    def realized_rate(self) -> np.ndarray:
        """`float64[n]`: averagings per gradient, while gradients were computed.

        A worker whose own gradients are over still averages with others; that does not
        count.
        """

        def rate(record):
            if not len(record["gradients"]):
                return 0.0
            end = record["gradients"][-1, 1]
            return (record["averagings"][:, 1] <= end).sum() / len(record["gradients"])

        return self._each(rate)

    @property
    def mean_rate(self) -> float:
        """Averagings per gradient of all workers, while they computed."""
        total = (self.realized_rate * self.gradient_counts).sum()
        return float(total / max(1, self.gradient_counts.sum()))

    @cached_property
    def gradients_per_second(self) -> np.ndarray:
        """`float64[n]`: of each worker, while it computed."""
        return self.gradient_counts / np.maximum(self.ends, 1e-9)

    @cached_property
    def averagings_per_second(self) -> np.ndarray:
        """`float64[n]`: of each worker, while it computed."""
        return self.realized_rate * self.gradients_per_second

    @cached_property
    def idle_share(self) -> np.ndarray:
        """`float64[n]`: share of the time in which a worker computed no gradient.

        It may have loaded data, or waited for averagings with a `max_backlog`.
        """
        busy = self._each(lambda r: np.diff(r["gradients"], axis=1).sum())
        return np.where(self.ends > 0, 1 - busy / np.maximum(self.ends, 1e-9), 0.0)

    @cached_property
    def staleness(self) -> np.ndarray:
        """`int64[gradients]`: averagings of a worker during each gradient, by rank."""
        parts = [record["staleness"] for _, record in sorted(self.records.items())]
        return np.concatenate([*parts, np.zeros(0, np.int32)]).astype(np.int64)

    @cached_property
    def look_numbers(self) -> np.ndarray:
        """`int64[looks]`: those looks, of the ones asked for, that all workers took.

        All but the last are missing of what was over when a run was resumed.
        """
        found = [set(r["look_numbers"].tolist()) for r in self.records.values()]
        return np.array(sorted(set.intersection(*found)), np.int64)

    @cached_property
    def look_times(self) -> np.ndarray:
        """`float64[looks]`: when models were compared, the mean over the workers."""
        return self._looks("looks").mean(0)

    @cached_property
    def consensus_distance(self) -> np.ndarray:
        r"""`float64[looks]`: the models' variance at these times.

        Estimated, for models of more than 1,024 coordinates, to a few percent: nobody
        has been stopped for it, and the workers look at slightly different times.
        Models that are not finite are left out; if none is, the result is NaN.
        """
        sketches = self._looks("sketches").astype(np.float64)
        finite = np.asarray(np.isfinite(sketches).all(2))
        count = finite.sum(0)
        with np.errstate(invalid="ignore"):  # 0 / 0, where no model is finite.
            rows = np.where(finite[:, :, None], sketches, 0.0)
            differences = rows - rows.sum(0) / count[:, None]
            squares = np.where(finite, (differences**2).sum(2), 0.0)
            return squares.sum(0) / count

    def _looks(self, name: str) -> np.ndarray:
        return np.stack(
            [
                record[name][np.isin(record["look_numbers"], self.look_numbers)]
                for record in self.records.values()
            ]
        )

    @cached_property
    def events(self) -> Events:
        """All gradients and averagings in the order of their ends, in seconds."""
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

    def save_trace(self, path: str | pathlib.Path) -> None:
        """Writes a timeline in Chrome's format, which https://ui.perfetto.dev opens.

        It has a process for each worker, and two threads in it: its gradients, and its
        averagings. Slices of a kind have the same name, so that the viewer can add them
        up; which one a slice is, and with whom, is in its arguments.

        Args:
          path: where to write it; usually it ends with `.json`.
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


def _named(kind: str, worker: int, thread: int, name: str) -> dict:
    return {
        "name": kind,
        "ph": "M",
        "pid": worker,
        "tid": thread,
        "args": {"name": name},
    }


def _span(
    worker: int, thread: int, name: str, times: np.ndarray, details: dict
) -> dict:
    begin, end = times.tolist()
    return {
        "name": name,
        "ph": "X",
        "pid": worker,
        "tid": thread,
        "ts": begin * 1e6,
        "dur": (end - begin) * 1e6,
        "args": details,
    }
