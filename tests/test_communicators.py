"""Tests of the communicators that need no mpirun."""

import platform
import sys

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launch import python

import djax
from djax import communicators, topologies, transport
from djax.transport import _launch, _packing

SIZE = 4
CYCLE = (2, 0, 1, 3)  # Matchings would hide a source that is taken for a destination.

each_communicator = pytest.mark.parametrize(
    "make", [communicators.simulated, communicators.mesh]
)


@each_communicator
def test_permute_receives_from_the_source(make):
    communicator = make(SIZE)
    received = communicator.spmd(lambda x: communicator.permute(x, CYCLE))(
        jnp.arange(SIZE)
    )
    np.testing.assert_array_equal(received, CYCLE)


def test_permute_within_a_sweep_moves_along_the_workers_only():
    """Whether the runs of the sweep are the inner axis or the outer one."""
    workers, x = communicators.simulated(SIZE), jnp.arange(3 * SIZE).reshape(SIZE, 3)

    def permute(x):
        return workers.permute(x, CYCLE)

    expected = x[np.array(CYCLE)]
    inner = workers.spmd(jax.vmap(permute))(x)
    outer = jax.vmap(workers.spmd(permute), in_axes=1, out_axes=1)(x)
    np.testing.assert_array_equal(inner, expected)
    np.testing.assert_array_equal(outer, expected)
    np.testing.assert_array_equal(workers.spmd(lambda _: permute(7))(x), [7] * SIZE)


@each_communicator
def test_permute_returns_derivatives_to_the_sender(make):
    workers, weights = make(SIZE), jnp.arange(1.0, SIZE + 1)

    permute = workers.spmd(lambda x: workers.permute(x, CYCLE))
    for compiled in (permute, jax.jit(permute)):
        gradient = jax.jit(jax.grad(lambda x, f=compiled: (weights * f(x)).sum()))
        sent = gradient(jnp.ones(SIZE))
        np.testing.assert_array_equal(sent[np.array(CYCLE)], weights)


@each_communicator
@pytest.mark.parametrize("source", [(0, 0, 0, 0), (0,), (1, 2, 3, 4)])
def test_permute_needs_a_permutation(make, source):
    communicator = make(SIZE)
    with pytest.raises(ValueError, match=r"permutation of range\(4\)"):
        communicator.spmd(lambda x: communicator.permute(x, source))(jnp.ones(SIZE))


@each_communicator
def test_mean_and_broadcast(make):
    communicator = make(SIZE)
    x = {"a": jnp.arange(SIZE, dtype=jnp.float32), "b": -jnp.zeros((SIZE, 2))}
    mean = communicator.spmd(communicator.mean)(x)
    np.testing.assert_array_equal(mean["a"], np.full(SIZE, 1.5))
    first = communicator.spmd(communicator.broadcast)(
        {"a": x["a"] + 7, "b": x["b"] * -1, "c": jnp.arange(SIZE) > 1}
    )
    np.testing.assert_array_equal(first["a"], np.full(SIZE, 7))
    assert not np.signbit(first["b"]).any()
    assert not first["c"].any()


@each_communicator
def test_mean_of_half_precision_is_summed_in_single(make):
    communicator = make(SIZE)
    x = jnp.asarray([256, 1, 1, 1], jnp.bfloat16)  # 256 + 1 = 256 in bfloat16
    mean = communicator.spmd(communicator.mean)(x)
    assert mean.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mean, np.full(SIZE, jnp.bfloat16(259 / 4)))


@each_communicator
def test_mean_refuses_integers(make):
    communicator = make(SIZE)
    with pytest.raises(TypeError, match="int32"):
        communicator.spmd(communicator.mean)(jnp.arange(SIZE))


@each_communicator
def test_the_users_own_axis_works(make):
    communicator = make(SIZE)
    received = jax.vmap(
        lambda x: communicator.permute(x, CYCLE), axis_name=communicator.axis_name
    )(jnp.arange(SIZE))
    np.testing.assert_array_equal(received, CYCLE)


@each_communicator
def test_outside_of_the_program_every_verb_says_so(make):
    communicator = make(SIZE)
    x = jnp.ones(3)
    calls = [
        communicator.rank,
        lambda: communicator.permute(x, CYCLE),
        lambda: communicator.mean(x),
        lambda: communicator.broadcast(x),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"inside communicator.spmd.*'workers'"):
            call()


@each_communicator
def test_spmd_names_the_array_without_workers(make):
    communicator = make(SIZE)
    program = communicator.spmd(lambda x, y: x)
    with pytest.raises(ValueError, match=r"argument 1\['w'\] has shape \(3,\).* 4 "):
        program(jnp.ones(SIZE), {"w": jnp.ones(3)})


@pytest.mark.slow
def test_a_branch_on_what_all_agree_on_stays_a_branch():
    """Also where the counter has come from outside, with an axis of workers."""
    communicator = communicators.simulated(8)
    for mechanism in (
        djax.power_gossip(topologies.ring(8), communicator),
        djax.power_gossip(topologies.base_graph(8), communicator),
    ):
        x = jnp.ones((8, 3, 4))
        state = communicator.spmd(mechanism.init)(x)
        program = jax.make_jaxpr(communicator.spmd(mechanism.update))(x, state, x)
        branching = [e for e in program.eqns if e.primitive.name == "cond"]
        assert [v.aval.shape for e in branching for v in e.invars[:1]] == [()]


@each_communicator
def test_agreed_values_are_unchanged(make):
    communicator = make(SIZE)
    agree = communicator.spmd(communicator.agreed)
    np.testing.assert_array_equal(agree(jnp.full(SIZE, 5)), np.full(SIZE, 5))


def test_local_ranks():
    assert list(communicators.simulated(SIZE).local_ranks) == [0, 1, 2, 3]
    assert list(communicators.mesh(SIZE).local_ranks) == [0, 1, 2, 3]


def test_mesh_without_enough_devices_says_how_to_get_them():
    with pytest.raises(ValueError, match="xla_force_host_platform_device_count=9"):
        communicators.mesh(9)


@pytest.mark.parametrize("make", [communicators.simulated, communicators.mesh])
def test_bad_arguments(make):
    with pytest.raises(ValueError, match="at least 1"):
        make(0)
    with pytest.raises(ValueError, match="drop_probability"):
        make(2, drop_probability=1.0)
    with pytest.raises(ValueError, match="drop_seed"):
        make(2, drop_seed=-1)


@each_communicator
def test_losses_have_the_asked_rate_and_spare_the_silent(make):
    communicator = make(SIZE, drop_probability=0.25)

    def worker(keys):
        return jax.vmap(lambda key: communicator.arrived(CYCLE, key))(keys)

    keys = jax.random.split(jax.random.key(0), 4000)
    arrived = communicator.spmd(worker)(communicators.replicate(communicator, keys))
    rates = np.asarray(arrived).mean(1)
    sigma = np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_allclose(rates[:3], 0.75, atol=4 * sigma)
    assert rates[3] == 1
    assert not np.array_equal(arrived[0], arrived[1])


def test_losses_depend_on_the_seed():
    keys = jax.random.split(jax.random.key(0), 100)
    draws = []
    for seed in (0, 0, 1):
        c = communicators.simulated(2, drop_probability=0.5, drop_seed=seed)
        worker = jax.vmap(lambda key, c=c: c.arrived((1, 0), key))
        draws.append(np.asarray(c.spmd(worker)(communicators.replicate(c, keys))))
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_reliable_messages_are_known_to_arrive():
    assert communicators.simulated(2).arrived((1, 0), jax.random.key(0)) is True


def test_agreement():
    communicator = communicators.simulated(3)
    good = {"w": jnp.ones(2), "name": "a"}
    communicators.check_agreement(communicator, "things", [good, dict(good), good])
    bad = {"w": jnp.asarray([1, np.nextafter(np.float32(1), 2)]), "name": "a"}
    with pytest.raises(ValueError, match=r"\['w'\] of ranks 1, 2"):
        communicators.check_agreement(communicator, "things", [good, bad, bad])
    for other in (jnp.ones(2, jnp.bfloat16), jnp.ones((2, 1))):
        with pytest.raises(ValueError, match=r"\['w'\] of rank 1"):
            things = [good, good | {"w": other}, good]
            communicators.check_agreement(communicator, "things", things)
    with pytest.raises(ValueError, match=r"\['w'\] of rank 2"):
        communicators.check_agreement(
            communicator, "things", [good, good, {"name": "a"}]
        )


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, None),
        ({"PMI_SIZE": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"SLURM_STEP_NUM_TASKS": "8"}, 8),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
    ],
)
def test_launchers_are_recognised(monkeypatch, environment, size):
    set_launcher(monkeypatch, environment)
    assert communicators.launcher_size() == size


def set_launcher(monkeypatch, environment):
    """Sets the variables of one launcher, and removes those of all others."""
    for name in (*_launch._SIZES, *_launch._RANKS, *_launch._MPIRUN, *_launch._PLUGINS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


# What Slurm 22.05 sets in a task of srun, and in the script of a batch job.
TASK = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}
BATCH = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
# srun starts one process of an mpirun on each of two nodes, and this one all others.
PROXY = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environment", "command", "rank"),
    [
        ({}, None, 0),
        (BATCH, None, 0),
        (TASK, "srun -n 4", 3),
        (TASK | {"PMIX_RANK": "3"}, "srun --mpi=pmix -n 4", 3),
        (TASK | {"PMI_RANK": "3", "PMI_SIZE": "4"}, "srun --mpi=pmi2 -n 4", 3),
        ({"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "4"}, "mpirun -n 4", 3),
        (
            PROXY | {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"},
            "mpirun -n 4",
            3,
        ),
        (
            PROXY
            | {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}
            | {"PMIX_RANK": "3"},
            "mpirun -n 4",
            3,
        ),
    ],
)
def test_the_launchers_command_is_known(monkeypatch, environment, command, rank):
    set_launcher(monkeypatch, environment)
    assert transport.launch_command() == command
    assert communicators.launcher_rank() == rank


class FakeNode:
    """As much of a node's communicator as the choice of a GPU needs."""

    def __init__(self, rank, environments, count):
        self.rank = rank
        self.mine = [(env, r % count) for r, env in enumerate(environments)]

    def allgather(self, mine):
        assert self.mine[self.rank] == mine
        return self.mine


@pytest.mark.parametrize(
    ("environments", "count", "chosen", "shared"),
    [
        ([None] * 4, 4, ["0", "1", "2", "3"], False),
        ([None] * 4, 2, ["0", "1", "0", "1"], True),
        ([None] * 2, 1, ["0", "0"], True),
        (["0", "1"], 1, ["0", "0"], False),  # Slurm's --gpus-per-task
    ],
)
def test_ranks_of_a_node_share_its_gpus(
    monkeypatch, environments, count, chosen, shared
):
    updates = {}
    monkeypatch.setattr(_launch, "_gpu_count", lambda: count)
    monkeypatch.setattr(_launch.jax.config, "update", updates.__setitem__)
    for rank, environment in enumerate(environments):
        monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if environment is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
        _launch._choose_gpu(FakeNode(rank, environments, count))
        assert updates["jax_cuda_visible_devices"] == chosen[rank]
        preallocates = _launch.os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE")
        assert (preallocates == "false") == shared


def test_gpus_taken_too_early_are_an_error(monkeypatch):
    monkeypatch.setattr(_launch, "_gpu_count", lambda: 2)
    monkeypatch.setattr(_launch.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(_launch.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(_launch.jax, "local_device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(RuntimeError, match="before the first JAX computation"):
        _launch._choose_gpu(FakeNode(0, [None], 2))


def test_wire_keeps_every_bit():
    tree = conformance.every_dtype(seed=0)
    known = {"float32", "int8", "int32", "bool", "uint8", "uint16"}
    sent = []

    def transfer(flat):
        assert flat.ndim == 1 and str(flat.dtype) in known
        sent.append(flat)
        return flat

    conformance.assert_same_bits(_packing.exchange(tree, transfer), tree)
    leaves = jax.tree.leaves(tree)
    assert len(sent) == _packing.count_messages(leaves) == 8  # One a dtype, one large.
    assert sum(s.size * s.dtype.itemsize for s in sent) == _packing.count_bytes(leaves)


def test_only_leaves_of_a_mebibyte_travel_alone():
    mebibyte, less = jnp.zeros(2**18), jnp.zeros(2**18 - 1)
    assert _packing.count_messages([mebibyte, less, less]) == 2
    assert _packing.count_messages([mebibyte, mebibyte]) == 2
    assert _packing.count_messages([jnp.zeros(0)]) == 0


def test_the_axis_must_have_the_communicators_workers():
    communicator = communicators.simulated(4)
    with pytest.raises(ValueError, match="has 8 workers, but the communicator has 4"):
        jax.vmap(communicator.mean, axis_name="workers")(jnp.ones(8))


def test_ranks_share_the_cores_that_they_may_run_on(monkeypatch):
    class Node:
        def __init__(self, sets):
            self.sets = sets

        def allgather(self, mine):
            return self.sets

    def threads(mine, others):
        monkeypatch.delenv("NPROC", raising=False)
        monkeypatch.setattr(
            _launch.os, "sched_getaffinity", lambda _: mine, raising=False
        )
        _launch._share_cores(Node([frozenset(s) for s in (mine, *others)]))
        return _launch.os.environ["NPROC"]

    assert threads(range(8), [range(8)] * 3) == "2"
    assert threads(range(8), [range(8, 16)]) == "8"  # The launcher has bound them.
    assert threads(range(1), [range(1)]) == "1"


def test_wire_cuts_what_mpi_cannot_count(monkeypatch):
    monkeypatch.setattr(_packing, "MAX_COUNT", 10)
    x, sizes = jnp.arange(25.0), []

    def transfer(flat):
        sizes.append(flat.size)
        return flat

    np.testing.assert_array_equal(_packing.exchange(x, transfer), x)
    assert sizes == [10, 10, 5]
    assert _packing.count_messages([x]) == 3


def test_mpi_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r"djax-gossip\[mpi\]"):
        communicators.mpi()


def test_sizes_must_match():
    with pytest.raises(ValueError, match="16 workers.*has 4"):
        djax.gossip(djax.topologies.ring(16), communicators.simulated(4))


@each_communicator
def test_losses_of_two_rounds_are_independent(make):
    communicator = make(SIZE, drop_probability=0.5)
    rounds = [(1, 0, 3, 2), (3, 2, 1, 0)]

    def worker(keys):
        return [
            jax.vmap(lambda key, s=source: communicator.arrived(s, key))(keys)
            for source in rounds
        ]

    keys = jax.random.split(jax.random.key(1), 4000)
    first, second = communicator.spmd(worker)(
        communicators.replicate(communicator, keys)
    )
    draws = np.concatenate([first, second]).astype(float)
    correlations = np.corrcoef(draws) - np.eye(2 * SIZE)
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


KEEP_MEMORY = """
import resource
import numpy as np
from djax.transport import _launch

_launch._keep_memory(sharing=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(25_000_000)  # 200 MB, which would be returned and be got anew.
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc")
def test_memory_of_large_arrays_is_kept():
    done = python("-c", KEEP_MEMORY)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200_000  # Fewer than four times the pages of one array.


@each_communicator
def test_spmd_passes_keyword_arguments_on(make):
    communicator = make(SIZE)

    def worker(x, *, t, others=None):
        return communicator.mean(x) + t * others["w"]

    t, others = jnp.arange(4.0), {"w": jnp.full(SIZE, 2.0)}
    program = jax.jit(communicator.spmd(worker))
    mean = program(jnp.arange(4.0), t=t, others=others)
    np.testing.assert_array_equal(mean, 1.5 + 2 * np.arange(4))
    named = communicator.spmd(worker)(x=jnp.arange(4.0), t=t, others=others)
    np.testing.assert_array_equal(named, mean)
    with pytest.raises(ValueError, match=r"argument t has shape \(\), .* 4 workers"):
        program(jnp.arange(4.0), t=3, others=others)
    with pytest.raises(ValueError, match=r"argument others\['w'\] has shape \(3,\)"):
        program(jnp.arange(4.0), t=t, others={"w": jnp.ones(3)})
    with pytest.raises(TypeError, match="argument others is 'no'.*functools.partial"):
        communicator.spmd(worker)(jnp.arange(4.0), t=t, others="no")


@each_communicator
def test_there_is_one_value_for_each_worker(make):
    communicator = make(SIZE)
    for name, call in {
        "gather": communicator.gather,
        "check_agreement": lambda values: communicators.check_agreement(
            communicator, "the seed", values
        ),
    }.items():
        for values in ([1, 1, 1], [1] * 5, []):
            with pytest.raises(
                ValueError, match=f"{name}.* 4 local.*got {len(values)}"
            ):
                call(values)
        for wrong in (1, None, "seed", {"a": 1, "b": 1, "c": 1, "d": 1}):
            with pytest.raises(TypeError, match=f"{name} needs a list"):
                call(wrong)
        call(jnp.ones(SIZE))


def test_agreement_of_random_keys():
    communicator = communicators.simulated(2)

    def agree(*keys):
        communicators.check_agreement(
            communicator, "the keys", [{"k": k} for k in keys]
        )

    agree(jax.random.key(0), jax.random.key(0))
    agree(
        jax.random.split(jax.random.key(1), 3), jax.random.split(jax.random.key(1), 3)
    )
    for other in (
        jax.random.key(1),
        jax.random.split(jax.random.key(0), 1),
        jax.random.key_data(jax.random.key(0)),
        jax.random.key(0, impl="rbg"),
    ):
        with pytest.raises(ValueError, match=r"\['k'\] of rank 1 is not"):
            agree(jax.random.key(0), other)
