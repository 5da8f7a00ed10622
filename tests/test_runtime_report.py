"""What is recorded during a run, and what its report says."""

import collections
import json

import numpy as np
import pytest
from asynchronous_parts import clock_of, make_settings

from djax import topologies
from djax.asynchronous import Report
from djax.asynchronous.runtime import _record
from djax.asynchronous.runtime._record import Record

pytestmark = pytest.mark.usefixtures("as_users")


def test_records_arrive_as_they_were(monkeypatch):
    clock = clock_of(_record, monkeypatch)
    record = Record()
    clock.now += 1
    record.gradient(0.25, staleness=3)
    record.snapshot(1, np.float32([1, 2]))
    clock.now += 1
    record.gradient(1.5, staleness=0)
    record.averaging(7, 0.5)
    record.snapshot(1, np.float32([3, 4]))
    packed = record.pack()
    assert all(x.dtype == np.uint8 and x.ndim == 1 for x in packed)
    found = Record.unpack([np.frombuffer(x.tobytes(), np.uint8) for x in packed])
    expected = {
        "gradients": np.array([[0.25, 1], [1.5, 2]]),
        "staleness": np.int32([3, 0]),
        "averagings": np.array([[0.5, 2.0]]),
        "peers": np.int32([7]),
        "snapshots": np.array([1.0, 2.0]),
        "sketches": np.float32([[1, 2], [3, 4]]),
    }
    assert list(found) == list(Record.NAMES)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_a_worker_without_gradients_has_a_record():
    record = Record()
    record.snapshot(1, np.zeros(5, np.float32))
    found = Record.unpack(record.pack())
    shapes = {name: array.shape for name, array in found.items()}
    assert shapes["gradients"] == shapes["averagings"] == (0, 2)
    assert shapes["staleness"] == shapes["peers"] == (0,)
    assert shapes["sketches"] == (1, 5)


def test_a_worker_without_snapshots_has_a_record():
    record = Record()
    record.gradient(0.0, 0)
    found = Record.unpack(record.pack())
    assert len(found["gradients"]) == 1 and len(found["sketches"]) == 0


def noted(gradients, meetings, snapshots=(), sketches=None):
    """A record; `gradients` are begin, end, staleness, `meetings` begin, end, peer."""
    gradients = np.array(gradients, np.float64).reshape(-1, 3)
    meetings = np.array(meetings, np.float64).reshape(-1, 3)
    return {
        "before": np.zeros(1, np.int32),
        "gradients": gradients[:, :2],
        "staleness": gradients[:, 2].astype(np.int32),
        "averagings": meetings[:, :2],
        "peers": meetings[:, 2].astype(np.int32),
        "snapshots": np.array(snapshots, np.float64),
        "snapshot_numbers": np.arange(1, len(snapshots) + 1, dtype=np.int32),
        "sketches": np.array(sketches, np.float32),
    }


RECORDS = {
    1: noted([(0, 2, 5)], [(0.5, 0.8, 0), (4.4, 5.2, 0)]),
    0: noted([(0, 1, 1), (2, 4, 3)], [(0.5, 0.75, 1), (2.5, 3.0, 2), (4.5, 5.0, 1)]),
    2: noted([], [(2.4, 3.1, 0)]),
}
PAIRS = [[0, 2, 1], [2, 0, 0], [1, 0, 0]]


def make_report(records=RECORDS, lost=()):
    return Report.of(make_settings(topologies.star(3)), records, dict(lost))


def test_what_a_report_says():
    report = make_report()
    np.testing.assert_allclose(report.rate, [1, 0.5, 0.5])
    assert report.gradient_counts.tolist() == [2, 1, 0]
    assert report.pair_counts.tolist() == PAIRS
    assert report.averaging_counts.tolist() == [3, 2, 1]
    assert report.ends.tolist() == [4, 2, 0] and report.seconds == 4
    assert report.realized_rate.tolist() == [1, 1, 0]  # Those at 5 come too late.
    assert report.gradients_per_second.tolist() == [0.5, 0.5, 0]
    assert report.averagings_per_second.tolist() == [0.5, 0.5, 0]
    assert report.idle_share.tolist() == [0.25, 0, 0]
    assert report.staleness.tolist() == [1, 3, 5]
    assert report.plot_staleness().patches[5].get_height() == pytest.approx(1 / 3)
    assert repr(report).startswith("Report(3 workers: 3 gradients and 3 averagings in")


def test_one_rate_is_everyones():
    settings = make_settings(topologies.star(3), 2.5, pairing="first_free")
    assert Report.of(settings, RECORDS, {}).rate.tolist() == [2.5] * 3


def test_a_report_as_events():
    events = make_report().events
    assert events.time.tolist() == [0.75, 1, 2, 3, 4, 5] and events.duration == 5
    assert events.worker.tolist() == [0, 0, 1, 0, 0, 0]
    assert events.peer.tolist() == [1, -1, -1, 2, -1, 1]
    assert events.pair_counts.tolist() == PAIRS
    assert events.gradient_counts.tolist() == [2, 1, 0]
    assert len(make_report(dict.fromkeys(range(3), noted([], []))).events) == 0


def test_a_worker_that_waits_is_drawn_as_waiting():
    bars, *_, meetings, _ = make_report().plot_timeline(until=4.5).collections
    spans = [path.get_extents().intervalx.tolist() for path in bars.get_paths()]
    assert spans == [[0, 2]]  # The record of worker 1 is the first one.
    assert len(meetings.get_segments()) == 2


@pytest.mark.parametrize("lost", range(3))
def test_survivors_know_whom_they_met(lost):
    records = {rank: record for rank, record in RECORDS.items() if rank != lost}
    report = make_report(records, {lost: "has failed"})
    assert report.pair_counts.tolist() == PAIRS
    assert report.events.pair_counts.tolist() == PAIRS
    counts = [2, 1, 0]
    counts[lost] = 0
    assert report.gradient_counts.tolist() == counts
    assert report.events.gradient_counts.tolist() == counts
    assert f"3 workers, lost [{lost}]: {sum(counts)} gradients" in repr(report)


def test_the_consensus_distance_is_the_models_variance():
    models = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    snapshots = np.arange(12.0).reshape(3, 4)
    counts = [4, 3, 4]  # One has not looked for the last time.
    records = {
        rank: noted([], [], snapshots[rank, :count], models[rank, :count])
        for rank, count in enumerate(counts)
    }
    report = make_report(records)
    exact = np.var(models[:, :3].astype(np.float64), axis=0).sum(-1)
    np.testing.assert_allclose(report.consensus_distance, exact, rtol=1e-12)
    assert report.snapshot_times.tolist() == [4, 5, 6]


def test_a_timeline_in_chromes_format(tmp_path):
    make_report().save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert all(event["ph"] in "MX" for event in events)
    threads = {}
    for rank in range(3):
        own = [event for event in events if event["pid"] == rank]
        names = [e["args"]["name"] for e in own if e["name"] == "process_name"]
        assert names == [f"worker {rank}"]
        for event in own:
            if event["name"] == "thread_name":
                threads[rank, event["tid"]] = event["args"]["name"]
        assert len([key for key in threads if key[0] == rank]) == 2
    spans = collections.defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            thread = threads[event["pid"], event["tid"]]
            spans[event["pid"], thread].append((event["ts"], event["dur"]))
    assert spans[0, "gradients"] == [(0, 1e6), (2e6, 2e6)]
    assert spans[1, "gradients"] == [(0, 2e6)] and (2, "gradients") not in spans
    assert spans[0, "averagings"] == [(5e5, 2.5e5), (2.5e6, 5e5), (4.5e6, 5e5)]
    assert [len(spans[rank, "averagings"]) for rank in range(3)] == [3, 2, 1]
