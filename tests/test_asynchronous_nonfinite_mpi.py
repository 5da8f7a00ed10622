"""Workers of several processes whose gradients are not finite."""

import numpy as np
import pytest
from test_asynchronous_mpi import check_sums, load, run_ranks

pytestmark = [pytest.mark.xdist_group("mpi"), pytest.mark.timeout(400)]

# Gradients of rank 1 are NaN from the fifth on, and so is what it carries along.
SICK = """
def sicken(walk, last=10**9):
    def gradient(params, state, batch):
        grads, state, metrics = walk(params, state, batch)
        state = jax.tree.map(lambda x: x + 1, state)
        if rank == 1 and 5 <= walk.turn <= last:
            nan = lambda x: x * jnp.nan
            walk.total = jax.tree.map(lambda t, g: t + np.asarray(g), walk.total, grads)
            return jax.tree.map(nan, grads), jax.tree.map(nan, state), metrics
        return grads, state, metrics
    gradient.start, gradient.walk = walk.start, walk
    return gradient

def try_(algorithm, nonfinite, transport, last=10**9):
    walk = Walk({"x": np.full(3, rank, "f4")})
    outcome = asynchronous.run(
        algorithm, sicken(walk, last), lambda epoch: np.arange(4)[None], MPI,
        topologies.complete(size), jax.tree.map(lambda x: x[None], walk.start),
        gradients=90, jit=False, rate=4, max_backlog=2, model_state=jnp.zeros(1),
        nonfinite=nonfinite, transport=transport, timeout=20.0,
    )
    return on_host({"start": walk.start, "total": walk.total, **outcome._asdict()})
"""

GO_ON = """
for transport in ("mpi", "zmq"):
    for name, algorithm in (("acid", acid), ("adpsgd", adpsgd)):
        for nonfinite, last in (("skip", 9), ("isolate", 10**9)):
            found = try_(algorithm, nonfinite, transport, last)
            dump(f"{transport} {name} {nonfinite}", found)
"""

RAISE = """
try:
    try_(acid, "raise", sys.argv[2])
except FloatingPointError as error:
    dump("error", f"{type(error).__name__}: {error}")
    if sys.argv[2] == "mpi":
        MPI.host_comm.Barrier()
    raise
"""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nonfinite")
    run_ranks(folder, 3, SICK + GO_ON)
    return folder


@pytest.mark.parametrize("transport", ["mpi", "zmq"])
@pytest.mark.parametrize("name", ["acid", "adpsgd"])
def test_skipped_gradients_leave_no_trace(healthy, transport, name):
    outcomes = load(healthy, f"{transport} {name} skip", range(3))
    report = outcomes[0]["report"]
    check_sums(outcomes, momentum=name == "acid")
    assert report.nonfinite_counts.tolist() == [0, 5, 0] and report.left_out == []
    assert outcomes[1]["metrics"]["batch"].shape[1] == report.gradient_counts[1]
    for rank, outcome in enumerate(outcomes):
        carried = outcome["workers"].model_state[0]
        assert carried == report.gradient_counts[rank] - (5 if rank == 1 else 0)


@pytest.mark.parametrize("transport", ["mpi", "zmq"])
@pytest.mark.parametrize("name", ["acid", "adpsgd"])
def test_isolated_workers_harm_nobody(healthy, transport, name):
    outcomes = load(healthy, f"{transport} {name} isolate", range(3))
    report = outcomes[0]["report"]
    models = [outcome["workers"].params["x"][0] for outcome in outcomes]
    assert [bool(np.isfinite(x).all()) for x in models] == [True, False, True]
    assert report.left_out == [1] and report.nonfinite_counts[1] > 0
    assert "not finite [1]" in repr(report)
    assert np.isfinite(report.consensus_distance).all()
    mean = (models[0] + models[2]) / 2
    for outcome in outcomes:
        np.testing.assert_allclose(outcome["params"]["x"][0], mean, atol=1e-5)
    # What the ends of a pair have noted agrees: nobody alone made an averaging.
    for rank in range(3):
        for peer in range(3):
            one, other = report.records[rank]["peers"], report.records[peer]["peers"]
            assert (one == peer).sum() == (other == rank).sum()
    assert report.pair_counts[0, 2] > 2 * report.pair_counts[0, 1]


@pytest.mark.parametrize("transport", ["mpi", "zmq"])
def test_everybody_raises(tmp_path, transport):
    """The worker is not merely lost, although the others could go on without it."""
    run_ranks(
        tmp_path, 3, SICK + RAISE, transport, guarded=transport == "zmq", fails=True
    )
    for error in load(tmp_path, "error", range(3)):
        assert "NonFiniteError: " in error
        assert "gradient 5 of worker 1 is not finite" in error
