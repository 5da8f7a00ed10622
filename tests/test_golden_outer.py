"""Trajectories of published outer optimizers, see golden/README.md."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies

GOLDEN = pathlib.Path(__file__).parent / "golden"
FILES = ["diloco_n4", "diloco_maxtext_n4", "slowmo_n4", "noloco_n8"]
PROBLEMS = {name: np.load(GOLDEN / f"{name}.npz") for name in FILES}
CASES = {
    (name, case): options
    for name in FILES
    for case, options in json.loads((GOLDEN / f"{name}.json").read_text()).items()
}


@pytest.fixture(autouse=True)
def double_precision():
    """All of this file is computed in float64; optax.adam mixes floats and integers."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def cases(name):
    """The cases of a file."""
    return [case for file, case in CASES if file == name]


def local_optimizer(options):
    """The optimizer of the local steps."""
    rate = options["lr"]
    if options["inner"] == "sgd":
        return optax.sgd(rate)
    if options["inner"] == "sgdm":
        return optax.sgd(rate, 0.9)
    if options["inner"] == "adam":
        return optax.adam(rate)
    return optax.adamw(rate, 0.9, 0.95, weight_decay=0.1)


def outer_optimizer(options):
    """The optimizer of the outer steps; MaxText's momentum is always Nesterov's."""
    nesterov = options.get("nesterov", True)
    return optax.sgd(options["outer_lr"], options["outer_mu"], nesterov)


def trajectory(optimizer, communicator, problem, steps, x0, change=None, start=None):
    """Runs the problem; each coordinate is a leaf of its own.

    Args:
      optimizer: the optimizer of each worker.
      communicator: connects the workers.
      problem: the arrays of a golden file.
      steps: number of steps.
      x0: `[workers, coordinates]`, or `[coordinates]`.
      change: the test's own wiring: from the number of a step, the optimizer, the
        gradients, the state and the parameters before the step to what the step
        returns, the parameters and the state.
      start: the test's own wiring: changes the first state.

    Returns:
      `[steps, workers, coordinates]`.
    """

    def step_of(t, optimizer, gradients, state, params):
        del t
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def worker(matrix, offset, x):
        params = list(x)
        state = optimizer.init(params)
        if start is not None:
            state = start(state)

        def step(carry, t):
            params, state = carry
            x = jnp.stack(params)
            gradients = list(matrix.T @ (matrix @ x - offset))
            params, state = (change or step_of)(t, optimizer, gradients, state, params)
            return (params, state), jnp.stack(params)

        return jax.lax.scan(step, (params, state), jnp.arange(steps))[1]

    size = communicator.size
    x0 = np.broadcast_to(x0, (size, np.shape(x0)[-1]))
    run = jax.jit(communicator.spmd(worker))
    xs = run(*map(jnp.asarray, (problem["A"], problem["b"], x0)))
    return np.asarray(xs).swapaxes(0, 1)


def assert_reproduced(file, case, xs):
    """Within 1e-9 of the recorded trajectory."""
    np.testing.assert_allclose(xs, PROBLEMS[file][f"x__{case}"][1:], 0, 1e-9)


@pytest.mark.parametrize("case", cases("diloco_n4"))
def test_diloco_of_torchft_and_exo_gym(case):
    """Fragments are ranges of coordinates.

    torchft applies a fragment after a multiple of period / fragments steps, and sends
    it `tau` steps earlier; the paper sends it then, and applies it `tau` steps later.
    Here the counter starts at `tau`. EXO gym makes the first period one step longer:
    here the first step is the local optimizer's alone.
    """
    options, problem = CASES["diloco_n4", case], PROBLEMS["diloco_n4"]
    workers = communicators.simulated(4)
    cuts = options["cuts"]
    numbers = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts)).tolist()
    outer = djax.outer(
        options["H"],
        outer_optimizer(options),
        djax.all_reduce(workers),
        fragments=numbers,
        delay=options["tau"],
        blend=1 - options["alpha"],
    )
    local = local_optimizer(options)

    def later(state):
        step = jnp.asarray(options["tau"], jnp.int32)
        return state[0], state[1]._replace(step=step)

    def first_alone(t, optimizer, gradients, state, params):
        def alone(_):
            updates, first = local.update(gradients, state[0], params)
            return updates, (first, state[1])

        def both(_):
            return optimizer.update(gradients, state, params)

        updates, state = jax.lax.cond(t == 0, alone, both, None)
        return optax.apply_updates(params, updates), state

    xs = trajectory(
        optax.chain(local, outer),
        *(workers, problem, options["steps"], problem["x0"]),
        change=first_alone if options["src"] == "exogym" else None,
        start=later,
    )
    assert_reproduced("diloco_n4", case, xs)


@pytest.mark.parametrize("case", cases("diloco_maxtext_n4"))
def test_diloco_of_maxtext(case):
    """In MaxText fragment 1 is the first to be sent, and fragment 0 the last."""
    options, problem = CASES["diloco_maxtext_n4", case], PROBLEMS["diloco_maxtext_n4"]
    workers = communicators.simulated(4)
    fragments = options["fragments"]
    numbers = np.zeros(problem["x0"].size, int)
    for fragment, coordinates in enumerate(fragments):
        numbers[coordinates] = (fragment - 1) % len(fragments)
    # If the period is no multiple, MaxText rounds the distance between two fragments.
    between = max(1, round(options["H"] / len(fragments)))
    outer = djax.outer(
        between * len(fragments),
        outer_optimizer(options),
        djax.all_reduce(workers),
        fragments=numbers.tolist(),
        delay=options.get("tau", 0),
        blend=1 - options.get("alpha", 0.0),
    )
    optimizer = optax.chain(local_optimizer(options), outer)
    xs = trajectory(optimizer, workers, problem, options["steps"], problem["x0"])
    assert_reproduced("diloco_maxtext_n4", case, xs)


@pytest.mark.parametrize("case", cases("noloco_n8"))
def test_noloco(case):
    """NoLoCo between the recorded groups, and the repository's DiLoCo."""
    options, problem = CASES["noloco_n8", case], PROBLEMS["noloco_n8"]
    workers = communicators.simulated(8)
    outer = {
        "period": options["H"],
        "outer_learning_rate": options["outer_lr"],
        "outer_momentum": options["outer_mu"],
    }
    local = local_optimizer(options)
    if options["opt"] == "C":
        groups = problem[f"groups__{case}"]
        matrices = np.zeros((len(groups), 8, 8))
        for matrix, now in zip(matrices, groups, strict=True):
            for group in now:
                matrix[np.ix_(group, group)] = 1 / len(group)
        schedule = topologies.from_matrices(matrices)
        optimizer = djax.noloco(local, workers, schedule=schedule, **outer)
    else:
        optimizer = djax.diloco(local, workers, nesterov=False, **outer)
    xs = trajectory(optimizer, workers, problem, options["steps"], problem["x0"])
    assert_reproduced("noloco_n8", case, xs)


def one_peer(size, slow_steps=None):
    """The one-peer exponential graph of fairscale, for any number of workers.

    Args:
      size: number of workers.
      slow_steps: the distance of steps in which nobody gossips, and in which the graph
        does not move on; None if there are none.
    """
    hops = 2 ** np.arange(int(np.log2(size - 1)) + 1)
    own = np.eye(size)
    matrices, used = [], 0
    for t in range((slow_steps or 1) * len(hops)):
        if slow_steps and (t + 1) % slow_steps == 0:
            matrices.append(own)
        else:
            hop = hops[used % len(hops)]
            matrices.append((own + np.roll(own, hop, axis=0)) / 2)
            used += 1
    return topologies.from_matrices(matrices)


@pytest.mark.parametrize("case", cases("slowmo_n4"))
def test_slowmo(case):
    """SlowMo over local SGD and over SGP.

    The paper's anchor is the common start. fairscale takes the model after the first
    local step, which differs between workers, unless it is initialized before (cases
    `_init0`): here that model replaces the anchor. With SGP it is the model before the
    workers gossip. If fairscale keeps a piece of the anchor on each worker ("memory
    efficient"), the pieces come from different workers. torchdistX averages after steps
    1, 1 + S, 1 + 2 S, ..., and makes no slow step after the first: here the first step
    is the local optimizer's alone, with an exact average.
    """
    options, problem = CASES["slowmo_n4", case], PROBLEMS["slowmo_n4"]
    workers = communicators.simulated(4)
    rate = options["lr"]
    if "lr2" in options:
        rate = optax.piecewise_constant_schedule(
            rate, {options["t2"]: options["lr2"] / rate}
        )
    momentum = options["mom"] or None
    local = optax.sgd(rate, momentum, nesterov=momentum is not None)
    averaging, base, change = workers, options["base"], None
    if base == "torchdistx":
        period, change = options["freq"], first_averaged(local, workers)
        slow = options["beta"], options["alpha"]
    else:
        settings = options["kw"]
        period = settings["slowmo_frequency"]
        slow = settings["slowmo_momentum"], settings["slowmo_lr"]
        if "init0" not in options:
            pieces = settings["slowmo_memory_efficient"]
            change = anchored_late(local, workers, pieces)
        if base == "local":
            often = djax.every(settings["localsgd_frequency"], djax.all_reduce(workers))
            local = optax.chain(local, often)
        else:
            exact = settings["slowmo_sgp_average_params"]
            averaging = workers if exact else None
            schedule = one_peer(4, slow_steps=period if exact else None)
            local = optax.chain(local, djax.push_sum(schedule, workers))
    optimizer = djax.slowmo(
        *(local, averaging),
        period=period,
        outer_momentum=slow[0],
        outer_learning_rate=slow[1],
        learning_rate=rate,
    )
    x0 = problem["x0_each" if options.get("each") else "x0"]
    xs = trajectory(optimizer, workers, problem, options["steps"], x0, change)
    assert_reproduced("slowmo_n4", case, xs)


def anchored_late(local, workers, pieces):
    """Makes a step in which, if it is the first, the local step leads to the anchor.

    Args:
      local: makes the local step, before the workers gossip.
      workers: connects the workers.
      pieces: whether all workers share an anchor, of which each of them has a piece.
    """

    def change(t, optimizer, gradients, state, params):
        moved, _ = local.update(gradients, state[0][0], params)
        moved = optax.apply_updates(params, moved)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        (fragment,) = state[-1].fragments
        anchor = [piece(x, i, len(params)) for i, x in enumerate(moved)]
        anchor = optax.tree.where(t == 0, anchor, fragment.anchor)
        fragments = (fragment._replace(anchor=anchor),)
        return params, (*state[:-1], state[-1]._replace(fragments=fragments))

    def piece(x, coordinate, count):
        if not pieces:
            return x
        is_mine = workers.rank() == coordinate // -(-count // workers.size)
        return workers.mean(jnp.where(is_mine, workers.size * x, 0))

    return change


def first_averaged(local, workers):
    """A step that, if it is the first, is a local step and an exact average."""

    def change(t, optimizer, gradients, state, params):
        def first(_):
            updates, after = local.update(gradients, state[0], params)
            params_after = workers.mean(optax.apply_updates(params, updates))
            return params_after, (after, *state[1:])

        def later(_):
            updates, after = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), after

        return jax.lax.cond(t == 0, first, later, None)

    return change
