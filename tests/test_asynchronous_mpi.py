"""Asynchronous runs of several processes: what they keep, and whom they lose."""

import collections
import json
import pickle

import numpy as np
import pytest
from launch import mpirun

pytestmark = [pytest.mark.xdist_group("mpi"), pytest.mark.timeout(400)]

# What all programs below begin with. Gradients are plain Python: they sleep, and return
# steps that are known, so that a single one that is lost, or applied twice, shows.
PREAMBLE = """
import os, pathlib, pickle, signal, subprocess, sys, threading, time
import jax, jax.numpy as jnp, numpy as np, optax
import djax
from djax import asynchronous, topologies
from djax.asynchronous.runtime._members import Members
from djax.transport import MPITransport, ZMQTransport

MPI = djax.communicators.mpi()
rank, size, folder = MPI.rank(), MPI.size, pathlib.Path(sys.argv[1])
ring, rng = topologies.ring(size), np.random.default_rng(MPI.rank())
acid = djax.acid(optax.sgd(1.0), djax.acid_constants(ring))
adpsgd = djax.adpsgd(optax.sgd(1.0))

class Walk:
    '''Gradients that move a worker by eighths, and keep the sum of the steps.'''

    def __init__(self, params, sleep=1e-3, at=lambda turn: None):
        self.start, self.total = params, jax.tree.map(np.zeros_like, params)
        self.sleep, self.at, self.turn = sleep, at, 0

    def __call__(self, params, state, batch):
        self.turn += 1
        self.at(self.turn)
        time.sleep(rng.exponential(self.sleep))
        step = jax.tree.map(lambda x: rng.integers(-8, 9, x.shape) / 8, self.total)
        self.total = jax.tree.map(np.add, self.total, step)
        grads = jax.tree.map(lambda s, x: jnp.asarray(-s, x.dtype), step, params)
        return grads, state, {"batch": batch}

def run(algorithm, walk, gradients, topology=ring, **options):
    '''Also returns what the test looks at, without JAX's arrays.'''
    outcome = asynchronous.run(
        algorithm, walk, lambda epoch: 4 * epoch + np.arange(4)[None], MPI, topology,
        jax.tree.map(lambda x: x[None], walk.start),
        gradients=gradients, jit=False, **options,
    )
    return on_host({"start": walk.start, "total": walk.total, **outcome._asdict()})

def on_host(tree):
    return jax.tree.map(
        lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, tree
    )

def dump(name, value):
    (folder / f"{name} {rank}").write_bytes(pickle.dumps(value))

def stop(seconds):
    '''Stalls the whole process: all of its threads.'''
    command = f"sleep {seconds}; kill -CONT {os.getpid()}"
    subprocess.Popen(  # Not of this process's group, which the launcher signals.
        ["sh", "-c", command], stdout=subprocess.DEVNULL, start_new_session=True
    )
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def load(folder, name, ranks):
    """What each of the ranks has dumped, `mpirun`'s return code whatever it was."""
    return [pickle.loads((folder / f"{name} {rank}").read_bytes()) for rank in ranks]


def run_ranks(
    folder, ranks, program, *arguments, guarded=False, fails=False, **options
):
    """Runs the program, which begins as all do; a hang is an error.

    Args:
      folder: where it dumps what the test looks at.
      ranks: how many processes.
      program: the rest of it.
      arguments: for it.
      guarded: whether others live on when a process is killed.
      fails: whether it should.
      options: of :func:`launch.mpirun`.
    """
    command = ["-c", PREAMBLE + program, str(folder), *map(str, arguments)]
    result = mpirun(ranks, *command, **({"guarded": guarded, "timeout": 120} | options))
    print(result.stderr)  # Shown if the test fails.
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result


def total(trees, name):
    """The sum of a leaf over the workers, in double precision."""
    return sum(np.asarray(tree[name], np.float64) for tree in trees)


def leaves(tree):
    """The arrays of a tree, without starting JAX."""
    if isinstance(tree, dict):
        tree = [x for _, x in sorted(tree.items())]
    return (
        [tree] if isinstance(tree, np.ndarray) else [y for x in tree for y in leaves(x)]
    )


def rounding(models, operations=1):
    """How far sums may be off after so many roundings, if they are independent."""
    largest = max(1.0, *(np.abs(x).max() for x in models))
    return 8 * np.sqrt(operations) * np.finfo(models[0].dtype).eps * largest


def check_mean(outcomes):
    """Everyone has the mean of the workers' models."""
    for outcome in outcomes:
        for name, mean in outcome["params"].items():
            models = [o["workers"].params for o in outcomes]
            error = np.abs(mean - total(models, name) / len(models)).max()
            assert error <= rounding([model[name] for model in models])


def check_sums(outcomes, momentum):
    """No step is lost or taken twice, whatever the averagings did.

    Args:
      outcomes: of all workers.
      momentum: whether to add the copies up, too, where the models' sum is not kept.
    """
    workers, report = [o["workers"] for o in outcomes], outcomes[0]["report"]
    copies = [[w.params for w in workers]]
    if momentum:
        copies.append([w.opt_state.momentum for w in workers])
    operations = 4 * report.averaging_counts.sum() + report.gradient_counts.sum()
    for name, start in outcomes[0]["start"].items():  # All start from rank 0's.
        steps = total([o["total"] for o in outcomes], name)
        expected = len(copies) * (len(workers) * start.astype(np.float64) + steps)
        error = np.abs(sum(total(models, name)[0] for models in copies) - expected)
        models = [model[name] for models in copies for model in models]
        assert error.max() <= rounding([*models, expected], operations)


# ---- Runs in which nobody is lost ------------------------------------------------

CONSERVATION = """
jax.config.update("jax_enable_x64", True)
params = {"double": np.full(3, rank + 1.0), "single": np.full((2, 2), rank, "f4")}
fast = {"rate": 16, "max_backlog": 16}
still = djax.acid(optax.sgd(1.0), djax.acid_constants(ring)._replace(eta=0.0))
dump("acid", run(acid, Walk(params), 1300, **fast))
dump("still", run(still, Walk(params), 330, pairing="first_free", **fast))
"""


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks")
    run_ranks(folder, 4, CONSERVATION)
    return {name: load(folder, name, range(4)) for name in ("acid", "still")}


@pytest.mark.parametrize("name", ["acid", "still"])
def test_thousands_of_averagings_lose_nothing(walks, name):
    outcomes = walks[name]
    least = {"acid": 10_000, "still": 2_500}[name]
    assert outcomes[0]["report"].pair_counts.sum() // 2 >= least
    check_sums(outcomes, momentum=True)
    check_mean(outcomes)
    if name == "still":  # Without mixing the models' sum is kept, too.
        check_sums(outcomes, momentum=False)


HEALTHY = """
params = {"x": np.full(5, rank, "f4")}
half = ring, {"rate": 2.0, "max_backlog": 4}
def walk(**options):
    return Walk(params, 2e-3, **options)

# How neighbours find each other, and how often.
for pairing in ("edge_clocks", "first_free", "fixed_order"):
    for random_times in {True, pairing == "edge_clocks"}:
        name = f"{pairing}, {random_times}"
        options = {"pairing": pairing, "random_times": random_times}
        dump(name, run(acid, walk(), 300, rate=2, max_backlog=3, **options))
rates = np.zeros((4, 4))
for i, j, rate in ((0, 1, 3.0), (1, 2, 0.5), (2, 3, 1.5), (3, 0, 1.0)):
    rates[i, j] = rates[j, i] = rate
dump("matrix", run(adpsgd, walk(), 400, rate=rates, max_backlog=3))
dump("rarely", run(adpsgd, walk(), 600, rate=0.25, max_backlog=0))
options = {"pairing": "fixed_order", "random_times": False}
dump("seldom", run(adpsgd, walk(), 200, rate=0.25, max_backlog=0, **options))
dump("never", run(adpsgd, walk(), 40, rate=0))

# One that computes a quarter as fast, and one that stalls for a while.
slow = Walk(params, 16e-3 if rank == 1 else 4e-3)
dump("slow", run(adpsgd, slow, 400))
for transport in ("mpi", "zmq"):
    def at(turn):
        if rank == 2 and turn == 10:
            stop(1.0)
    dump(f"stall, {transport}", run(acid, walk(at=at), 200, transport=transport))

# Large arrays, which may stay on the device.
large = {"x": np.full(5, rank, "f4"), "large": np.full((600, 600), rank, "f4")}
kinds, buffer = set(), MPITransport._buffer
MPITransport._buffer = lambda *args: kinds.add(args[2]) or buffer(*args)
for direct in "01":
    os.environ["MPI4JAX_USE_CUDA_MPI"] = direct
    options = {"rate": 2, "max_backlog": 2, "keep_snapshots": True}
    kinds.clear()
    outcome = run(acid, Walk(large), 40, **options)
    dump(f"direct {direct}", {**outcome, "direct": True in kinds})
dump("snapshots", run(acid, walk(), 200, keep_snapshots=True, snapshots=7))

def quadratic(params, count, target):
    error = params["x"] - target
    return {"x": error}, count + 1, {"loss": (error**2).sum()}

dump("jit", on_host(asynchronous.run(
    djax.acid(optax.adam(0.1), djax.acid_constants(ring)), quadratic,
    lambda epoch: np.full((1, 3, 2), rank, "f4"), MPI, ring,
    {"x": jnp.full((1, 2), 9.0)},
    gradients=600, max_backlog=1, model_state=jnp.zeros(1, int),
)._asdict()))
"""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    run_ranks(folder, 4, HEALTHY)
    names = sorted({path.name[:-2] for path in folder.iterdir()})
    return {name: load(folder, name, range(4)) for name in names}


PAIRINGS = [
    "edge_clocks, True",
    "first_free, True",
    "first_free, False",
    "fixed_order, True",
    "fixed_order, False",
]


def test_healthy_runs_lose_nothing(healthy):
    assert len(healthy) == len(PAIRINGS) + 11
    for name, outcomes in healthy.items():
        assert outcomes[0]["report"].lost == {}
        check_mean(outcomes)
        if name != "jit":  # The steps of the others are known.
            state = outcomes[0]["workers"].opt_state
            check_sums(outcomes, momentum=hasattr(state, "momentum"))


def test_all_have_the_same_report_of_what_happened(healthy):
    for outcomes in healthy.values():
        reports = [o["report"] for o in outcomes]
        for report in reports:
            assert sorted(report.records) == list(range(4))
            for ours, first in zip(
                report.records.values(), reports[0].records.values(), strict=True
            ):
                for field, values in ours.items():
                    np.testing.assert_array_equal(values, first[field])


@pytest.mark.parametrize("name", [*PAIRINGS, "matrix", "rarely", "never"])
def test_counts_of_the_report_are_consistent(healthy, name):
    report = healthy[name][0]["report"]
    budget = {"matrix": 400, "rarely": 600, "never": 40}.get(name, 300)
    # When the budget is spent, each of four may have one gradient on its way, and
    # another before it hears of it.
    assert budget <= report.gradient_counts.sum() <= budget + 20
    counts = report.pair_counts
    for rank, record in report.records.items():  # Each end has counted by itself.
        own = np.bincount(record["peers"], minlength=4)
        np.testing.assert_array_equal(own, counts[rank])
    assert not counts[0, 2] and not counts[1, 3] and not counts.diagonal().any()
    assert len(report.staleness) == report.gradient_counts.sum()
    metrics = [o["metrics"]["batch"] for o in healthy[name]]
    for mine, count in zip(metrics, report.gradient_counts.tolist(), strict=True):
        np.testing.assert_array_equal(mine, np.arange(count)[None])  # The batches.
    events = report.events  # Its constructor checks them.
    assert events.is_gradient.sum() == report.gradient_counts.sum()
    assert (~events.is_gradient).sum() == counts.sum() // 2


@pytest.mark.parametrize("name", PAIRINGS)
def test_workers_that_wait_average_as_often_as_asked(healthy, name):
    report = healthy[name][0]["report"]
    asked = report.gradient_counts.sum()  # Rate 2, of which each end counts one.
    assert abs(report.pair_counts.sum() / 2 - asked) < 5 * np.sqrt(asked)
    assert 1.6 < report.mean_rate < 2.4


def test_neighbours_meet_as_often_as_their_clocks_tick(healthy):
    report = healthy["matrix"][0]["report"]
    counts, gradients = report.pair_counts, report.gradient_counts
    for i, j, rate in ((0, 1, 3.0), (1, 2, 0.5), (2, 3, 1.5), (3, 0, 1.0)):
        asked = rate * (gradients[i] + gradients[j]) / 2
        # The last demands, up to three of a worker, are left out in the end.
        assert -5 * np.sqrt(asked) - 8 < counts[i, j] - asked < 5 * np.sqrt(asked)


def test_a_fixed_order_is_kept(healthy):
    for name in PAIRINGS[3:]:
        for rank, record in healthy[name][0]["report"].records.items():
            peers = record["peers"].tolist()[: int(len(record["peers"]) * 0.9)]
            assert set(peers) == {(rank - 1) % 4, (rank + 1) % 4}
            assert all(a != b for a, b in zip(peers, peers[1:], strict=False))


def test_rates_below_one_are_local_steps(healthy):
    report = healthy["rarely"][0]["report"]
    asked = report.gradient_counts.sum() / 8
    assert abs(report.pair_counts.sum() / 2 - asked) < 5 * np.sqrt(asked)
    report = healthy["seldom"][0]["report"]  # At constant gaps of four gradients.
    np.testing.assert_allclose(
        report.averaging_counts, report.gradient_counts / 4, atol=2
    )
    assert (report.staleness == 0).mean() > 0.5


def test_without_averagings_workers_go_their_own_ways(healthy):
    outcomes = healthy["never"]
    assert not outcomes[0]["report"].pair_counts.any()
    for outcome in outcomes:
        own = outcome["workers"].params["x"][0]
        np.testing.assert_array_equal(own, outcome["total"]["x"])  # Rank 0 starts at 0.


def test_a_slow_worker_computes_less_and_ages_less(healthy):
    report = healthy["slow"][0]["report"]
    others = np.delete(report.gradient_counts, 1)
    assert 1 / 8 < report.gradient_counts[1] / others.mean() < 1 / 2
    assert others.max() < 2 * others.min()
    assert report.averaging_counts[1] < others.max()


@pytest.mark.parametrize("transport", ["mpi", "zmq"])
def test_nobody_is_lost_that_stalls_for_less_than_the_timeout(healthy, transport):
    report = healthy[f"stall, {transport}"][0]["report"]
    begin, end = report.records[2]["gradients"][9]
    assert end - begin > 0.9  # It did stall.
    assert report.gradient_counts[2] < report.gradient_counts[[0, 1, 3]].min()


def test_arrays_may_stay_on_their_device(healthy):
    """That these runs lose nothing, and end with the mean, is seen above."""
    for name, direct in (("direct 0", False), ("direct 1", True)):
        outcomes = healthy[name]
        assert [o["direct"] for o in outcomes] == [direct] * 4
        assert outcomes[0]["report"].pair_counts.sum() > 40


def true_distances(outcomes):
    """The variance of the workers' models at each snapshot, from the models."""
    result = []
    for number in outcomes[0]["report"].snapshot_numbers:
        snapshots = [
            snapshot
            for o in outcomes
            for snapshot in o["snapshots"]
            if snapshot.number == number
        ]
        models = [
            np.concatenate([x.ravel() for _, x in sorted(snapshot.params.items())])
            for snapshot in snapshots
        ]
        assert len(models) == len(outcomes)
        models = np.stack(models).astype(np.float64)
        result.append(((models - models.mean(0)) ** 2).sum(1).mean())
    return result


@pytest.mark.parametrize(
    ("name", "tolerance"), [("snapshots", 1e-5), ("direct 0", 0.15), ("direct 1", 0.15)]
)
def test_consensus_distances_are_those_of_the_models(healthy, name, tolerance):
    outcomes = healthy[name]
    report = outcomes[0]["report"]
    assert len(report.snapshot_numbers) >= 3
    assert report.snapshot_numbers[-1] == (7 if name == "snapshots" else 20)
    np.testing.assert_allclose(
        report.consensus_distance, true_distances(outcomes), rtol=tolerance
    )


def test_compiled_gradients_solve_a_problem(healthy):
    """The mean of (x - rank)² / 2 over four ranks is least at 1.5."""
    outcomes = healthy["jit"]
    np.testing.assert_allclose(outcomes[0]["params"]["x"], 1.5, atol=0.5)
    for rank, outcome in enumerate(outcomes):
        count = outcome["report"].gradient_counts[rank]
        assert outcome["workers"].model_state == [count]
        assert outcome["metrics"]["loss"].shape == (1, count)
        assert outcome["workers"].opt_state.base_state[0].count == [count]


def test_a_trace_has_a_process_for_each_worker(healthy, tmp_path):
    report = healthy[PAIRINGS[0]][0]["report"]
    report.save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = collections.Counter(e["name"] for e in events if e["ph"] == "M")
    assert names["process_name"] == 4 and names["thread_name"] == 8
    spans = [e for e in events if e["ph"] == "X"]
    assert {(e["pid"], e["tid"]) for e in spans} == {
        (rank, thread) for rank in range(4) for thread in range(2)
    }
    assert all(e["dur"] >= 0 for e in spans)
    assert len(spans) == report.gradient_counts.sum() + report.pair_counts.sum()


MANY = """
walks = []
common = np.random.default_rng(1)
for number in range(200):
    algorithm = (acid, adpsgd)[common.integers(2)]
    pairing = common.choice(["edge_clocks", "first_free", "fixed_order"])
    options = {
        "pairing": str(pairing),
        "random_times": pairing == "edge_clocks" or bool(common.integers(2)),
        "rate": float(common.choice([0.0, 0.3, 1.0, 4.0])),
        "max_backlog": [None, 0, 1, 4][common.integers(4)],
        "transport": "zmq" if number % 8 == 7 else "mpi",
        "seed": int(common.integers(1000)),
        "snapshots": 2,
    }
    walk = Walk({"x": np.full(3, rank, "f4")}, sleep=common.exponential(1e-3))
    walks.append(run(algorithm, walk, int(common.integers(1, 40)), **options))
dump("walks", walks)
"""


def test_two_hundred_runs_end(tmp_path):
    run_ranks(tmp_path, 3, MANY)
    runs = list(zip(*load(tmp_path, "walks", range(3)), strict=True))
    assert len(runs) == 200
    averagings = 0
    for outcomes in runs:
        check_mean(outcomes)
        state = outcomes[0]["workers"].opt_state
        check_sums(outcomes, momentum=hasattr(state, "momentum"))
        averagings += outcomes[0]["report"].pair_counts.sum() // 2
    assert averagings > 1000


# ---- Faults ----------------------------------------------------------------------

FAULTY = """
fault, victim, transport, timeout = sys.argv[2:]
victim = int(victim)

def at(turn):
    if rank != victim or turn != 25:
        return
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "kill while a model travels":
        def send(self, peer, header, buffers=()):
            plain(self, peer, header, buffers)
            if buffers:
                os.kill(os.getpid(), signal.SIGKILL)
        plain, ZMQTransport.send = ZMQTransport.send, send
    elif fault == "raise":
        raise ValueError("the disk is full")
    elif fault == "stop":
        stop(4)
    elif fault == "stop before the averaging thread looks around":
        def silent(self):
            Members.silent = plain
            stop(4)
            return plain(self)
        plain, Members.silent = Members.silent, silent

if fault == "raise" and rank == 0:  # Here rank 3's farewell arrives long after all.
    def late(self, seconds):
        messages = poll(self, min(seconds, 0.05))
        held.extend(m for m in messages if m.sender == 3 and b"bye" in m.header)
        due.extend([time.monotonic() + 0.5] * (len(held) - len(due)))
        others = [m for m in messages if not any(m is h for h in held)]
        if due and time.monotonic() > due[0]:
            others += held[:1]
            due[0] = float("inf")
        return others
    held, due, poll = [], [], ZMQTransport.poll
    ZMQTransport.poll = late

params = {"x": np.full((512, 1024), rank, "f4")}
walk = Walk(params, 2e-3, at)
options = {"rate": 2, "transport": transport, "timeout": float(timeout)}
try:
    dump("outcome", run(acid, walk, 400, **options))
except BaseException as error:
    dump("error", f"{type(error).__name__}: {error}")
    raise
"""


def survive(folder, fault, victim, timeout=10):
    """Runs with sockets; returns the survivors' outcomes, and what they say of it."""
    result = run_ranks(
        folder,
        4,
        FAULTY,
        *(fault, victim, "zmq", timeout),
        guarded=True,
        fails=True,
    )
    survivors = [rank for rank in range(4) if rank != victim]
    assert not (folder / f"outcome {victim}").exists()
    outcomes = load(folder, "outcome", survivors)
    check_mean(outcomes)
    for outcome in outcomes:
        report = outcome["report"]
        assert list(report.lost) == [victim]
        assert sorted(report.records) == survivors
        assert report.gradient_counts[victim] == 0
        assert report.gradient_counts.sum() >= 400 - 40
        assert report.events.is_gradient.sum() == report.gradient_counts.sum()
        assert f"worker {victim} is lost: it {report.lost[victim]}" in result.stderr
    return outcomes, result


@pytest.mark.parametrize(
    ("fault", "victim"), [("kill while a model travels", 2), ("kill", 0)]
)
def test_others_go_on_without_a_killed_worker(tmp_path, fault, victim):
    outcomes, _ = survive(tmp_path, fault, victim, timeout=2)
    for outcome in outcomes:
        reason = outcome["report"].lost[victim]
        assert reason.startswith(
            "was not heard of for 2 s; when last heard of, it was "
        )


def test_others_go_on_without_a_worker_that_raises(tmp_path):
    outcomes, result = survive(tmp_path, "raise", 1)
    reason = "failed, computing gradient 25: ValueError: the disk is full"
    for outcome in outcomes:
        assert outcome["report"].lost[1] == reason
    assert "rank 1 failed:\nTraceback" in result.stderr
    assert load(tmp_path, "error", [1]) == ["ValueError: the disk is full"]


def test_who_comes_back_too_late_is_told_that_it_is_lost(tmp_path):
    """And does not believe that all others are, whose messages it has not read."""
    survive(tmp_path, "stop before the averaging thread looks around", 2, timeout=2)
    (error,) = load(tmp_path, "error", [2])
    assert error.startswith("WorkerLost: the others go on without this worker")


@pytest.mark.parametrize(
    ("fault", "messages"),
    [
        (
            "raise",
            [
                "rank 1 of 4 failed",
                "ValueError: the disk is full",
                "was computing gradient 25",
            ],
        ),
        ("kill", ["Killed (signal 9)"]),
        ("stop", ["worker 1 was not heard of for 2 s; when ", 'transport="zmq"']),
    ],
)
def test_over_mpi_a_fault_ends_all(tmp_path, fault, messages):
    result = run_ranks(tmp_path, 4, FAULTY, fault, 1, "mpi", 2, fails=True)
    assert not list(tmp_path.glob("outcome *"))
    for message in messages:
        assert message in result.stdout + result.stderr


# ---- Before a run begins ---------------------------------------------------------


def test_ranks_that_do_not_take_part_are_named(tmp_path):
    program = """
walk = Walk({"x": np.zeros(3)})
try:
    run(acid, walk, 10 + rank // 2)
except ValueError as error:
    dump("error", str(error))
if rank != 3:
    run(acid, walk, 10, timeout=0.2)
time.sleep(10)
"""
    result = run_ranks(tmp_path, 4, program, fails=True)
    for error in load(tmp_path, "error", range(4)):
        assert "arguments of asynchronous.run differ" in error
        assert "['gradients'] of ranks 2, 3 is not rank 0's" in error
    assert "ranks [3] have not called it within 2 s" in result.stderr


# ---- Checkpoints -----------------------------------------------------------------

SAVE = """
momentum = djax.acid(
    optax.sgd(1.0, momentum=0.5), djax.acid_constants(ring)._replace(alpha_tilde=0.7)
)

def resume(gradients, **options):
    checkpoints = asynchronous.Checkpoints(folder / "all", every=0.02, **options)
    walk = Walk({"x": np.full(3, rank, "f4"), "y": np.ones(2, "f4")}, 4e-3)
    return run(momentum, walk, gradients, rate=4, checkpoints=checkpoints)
"""
FIRST = """
dump("first", resume(80))
"""
SECOND = """
try:
    resume(120)
except ValueError as error:
    dump("error", str(error))
dump("again", resume(80, resume=True))
dump("second", resume(120, resume=True))
(folder / "all" / "workers_0-0_of_3").mkdir(exist_ok=True)
try:
    resume(200, resume=True)
except ValueError as error:
    dump("other", str(error))
"""


def test_a_run_goes_on_from_its_checkpoints(tmp_path):
    run_ranks(tmp_path, 2, SAVE + FIRST)
    first = load(tmp_path, "first", range(2))
    counts = first[0]["report"].gradient_counts
    for rank, count in enumerate(counts.tolist()):
        folder = tmp_path / "all" / f"workers_{rank}-{rank}_of_2"
        steps = sorted(int(path.name) for path in folder.iterdir())
        assert len(steps) == 2 and 0 < steps[0] < steps[1] == count
    run_ranks(tmp_path, 2, SAVE + SECOND)
    for error in load(tmp_path, "error", range(2)):
        assert f"{tmp_path / 'all'} has some already; use resume=True" in error
    again, second = (load(tmp_path, name, range(2)) for name in ("again", "second"))
    for rank in range(2):
        report = again[rank]["report"]
        np.testing.assert_array_equal(report.gradients_before, counts)
        assert not report.gradient_counts.any()
        mine, saved = again[rank]["workers"], first[rank]["workers"]
        for ours, theirs in zip(leaves(mine), leaves(saved), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert np.abs(saved.params["x"] - saved.opt_state.momentum["x"]).max() > 0
        report = second[rank]["report"]
        np.testing.assert_array_equal(report.gradients_before, counts)
        assert 120 <= (counts + report.gradient_counts).sum() < 130
        metrics = second[rank]["metrics"]["batch"][0]
        np.testing.assert_array_equal(metrics, counts[rank] + np.arange(len(metrics)))
    check_mean(again)
    check_mean(second)
    for error in load(tmp_path, "other", range(2)):
        assert "or another number of workers, workers_0-0_of_3" in error
