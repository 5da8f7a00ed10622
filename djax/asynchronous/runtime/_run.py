"""Workers that never wait, in real time: one process each, under mpirun.

The main thread computes gradients one after another; the averaging thread
(:mod:`djax.asynchronous.runtime._averager`) exchanges models meanwhile and changes the
model behind the gradient's back. Their common property is a :class:`Model`; JAX
releases the interpreter while it computes, and so do MPI and ZeroMQ while they wait.
"""

import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from djax import communicators
from djax._interfaces import Communicator, PyTree
from djax.asynchronous._finite import describe
from djax.asynchronous.algorithms._acid import EventTransformation, other_rates
from djax.asynchronous.algorithms._constants import Asked
from djax.asynchronous.simulator._batches import OwnBatches
from djax.communicators._common import check_leading_axis
from djax.topologies import Topology
from djax.training._checkpoints import Checkpointer, Checkpoints
from djax.training._gradient_fn import GradientFn, check_gradient_fn
from djax.training._nonfinite import NonFinite, NonFiniteError
from djax.training._programs import Workers
from djax.transport import TRANSPORTS, leave_alone, meet

from ._averager import Averager, Look
from ._gradient import Gradient
from ._history import History
from ._members import Members, WorkerLost
from ._model import Model
from ._record import Record
from ._report import Report
from ._resume import begin
from ._settings import Settings, check_participants

# Timeouts for which a rank may do other things before it takes part.
_START = 10
# Seconds that a worker that has failed has to say why before others end the job.
_LAST_WORDS = 2.0


class Outcome(NamedTuple):
    """What a worker has when a run has ended.

    Attributes:
      params: the mean of all workers' models, the same on all of them, with a leading
        axis of 1.
      workers: this worker's model, state and model state, with a leading axis of 1.
      metrics: of this worker's gradients, `[1, gradients, ...]`.
      looks: this worker's models during the run, if they were kept.
      report: what all workers did, the same on all of them.
      unsaved: why checkpoints of this worker could not be written.
    """

    params: PyTree
    workers: Workers
    metrics: PyTree
    looks: list[Look]
    report: Report
    unsaved: tuple[str, ...] = ()


def run(
    algorithm: EventTransformation,
    gradient_fn: GradientFn,
    batches: Callable[[int], PyTree],
    communicator: Communicator,
    topology: Topology,
    params: PyTree,
    *,
    gradients: int | None = None,
    seconds: float | None = None,
    rate: Any = 1.0,
    pairing: str = "edge_clocks",
    random_times: bool = True,
    max_backlog: int | None = None,
    model_state: PyTree = (),
    looks: int = 20,
    keep_looks: bool = False,
    progress: Callable[[int], object] | None = None,
    stop: Callable[[], bool] | None = None,
    checkpoints: Checkpoints | None = None,
    transport: str = "mpi",
    timeout: float = 60.0,
    jit: bool = True,
    seed: int = 0,
    nonfinite: NonFinite = "raise",
) -> Outcome:
    """Trains asynchronously: nobody waits for anybody.

    To be called by all ranks of an MPI job. Each computes gradients back to back, while
    a second thread of it averages with neighbours; what an averaging changes is added
    to the model as it is by then, so that no gradient is lost. A worker's time is
    counted in its own gradients: a slow one averages less often, and its model ages
    more slowly. What fraction of the current gradient has passed is estimated from the
    previous ones.

    The arguments from `topology` on, but for `params`, `model_state`, `progress` and
    `stop`, have to be the same on all ranks. After a run in which a worker was lost
    (`report.lost`), communicate no more: MPI would wait for it.

    Args:
      algorithm: :func:`djax.acid` or :func:`djax.adpsgd`.
      gradient_fn: what ONE worker computes, as in :func:`djax.simulation.make_steps`:
        `(params, model_state, batch) -> (grads, model_state, metrics)`.
      batches: `epoch -> tree` with leaves `[1, steps, ...]`, this worker's data of the
        epochs 0, 1, ..., always the same number of steps.
      communicator: of :func:`djax.communicators.mpi`.
      topology: who averages with whom.
      params: the first model, with a leading axis of 1; all start from that of rank 0.
      gradients: end when all workers together have computed so many. What is on its
        way by then is added.
      seconds: end after so long, or at whatever of the two comes first.
      rate: averagings of a worker per own gradient, or `float[n, n]` of each pair, as
        in :func:`djax.asynchronous.edge_rates`. Below 1 it is local SGD; at 0 nobody
        averages. The constants of :func:`djax.acid` should be for the same rate: if
        they are known to be for another, rank 0 warns.
      pairing: how neighbours find each other. `"edge_clocks"`: at the times of a
        Poisson process for each pair, as in the papers' analysis; `"first_free"`: with
        the first of the neighbours, in random order, that wants to average, too;
        `"fixed_order"`: with one after another, in the order of
        `topology.rounds`, the schedule of AD-PSGD.
      random_times: whether a worker wants its averagings at the times of a Poisson
        process, or at constant gaps, which `"edge_clocks"` does not have.
      max_backlog: let a gradient begin only when at most so many averagings are due
        and not made; 0 is how the paper's program works. By default gradients never
        wait, and averagings that the network cannot keep up with are left out in the
        end.
      model_state: what the gradients carry along, with a leading axis of 1.
      looks: how often the consensus distance is taken, spread over the run.
      keep_looks: keep the model of each look, in the device's memory.
      progress: called with the number of all workers' gradients after each own one.
      stop: asked after each own gradient; once it says True, on any rank, the run ends
        for all, as if its budget were used up.
      checkpoints: where to save and resume; by default nowhere.
      transport: `"mpi"`, or `"zmq"`, with which the others go on when a worker is lost;
        launch with `mpirun -disable-auto-cleanup` and :mod:`djax.guard` then.
      timeout: seconds without any sign of life after which a worker is lost.
      jit: compile `gradient_fn`; False for one that is a plain Python function.
      seed: of the times and choices of averagings.
      nonfinite: what happens to a gradient that is not finite, or that leads to a model
        that is not. `"raise"`: the run ends, on all ranks; `"skip"`: it is not
        applied, and the model state stays as it was before, although it counts as
        computed; `"isolate"`: nothing is done about the worker. In each case models
        that are not finite are neither averaged with others nor part of the mean in the
        end; `report.nonfinite_counts` and `report.left_out` tell of them.

    Returns:
      The :class:`Outcome`.

    Raises:
      TypeError: if an argument is none of what it should be.
      ValueError: if an argument is out of range; before anything is computed.
      RuntimeError: if MPI does not let two threads communicate, a rank does not take
        part, or a worker is lost that the others cannot do without: the message names
        it and what it was doing.
      djax.asynchronous.NonFiniteError: a `FloatingPointError`, if a gradient or model
        is not finite, unless `nonfinite` says otherwise; it names worker and gradient.

    Examples:
      In a file that is started by `mpirun -n 4 python`::

        communicator = djax.communicators.mpi()
        ring = djax.topologies.ring(communicator.size)
        outcome = djax.asynchronous.run(
            djax.acid(optax.sgd(0.1), djax.acid_constants(ring)),
            gradient_fn,
            lambda epoch: batches,
            communicator,
            ring,
            jnp.zeros((1, 10)),
            gradients=4000,
        )
        print(outcome.params, outcome.report)

    References:
      Nabli et al., `A²CiD²: Accelerating Asynchronous Communication in Decentralized
      Deep Learning <https://arxiv.org/abs/2306.08289>`_, 2023, Section 3.3 and
      Algorithm 1
    """
    comm = check_participants(algorithm, communicator, topology)
    settings = Settings(
        topology,
        rate,
        gradients=gradients,
        seconds=seconds,
        pairing=pairing,
        random_times=random_times,
        max_backlog=max_backlog,
        looks=looks,
        keep_looks=keep_looks,
        transport=transport,
        timeout=timeout,
        seed=seed,
        nonfinite=nonfinite,
    )
    mistake = other_rates(algorithm, Asked(topology, rate))
    if mistake and comm.rank == 0:
        warnings.warn(f"asynchronous.run: {mistake}", stacklevel=2)
    check_leading_axis("run: params", (params,), 1)
    check_leading_axis("run: model_state", (model_state,), 1)
    stream = OwnBatches(batches)
    params, model_state = jax.tree.map(
        lambda x: jnp.asarray(x)[0], (params, model_state)
    )
    if jit:
        check_gradient_fn("run", gradient_fn, params, model_state, stream.example)
    compute = Gradient(gradient_fn, stream, jit)
    meet(comm, "asynchronous.run", _START * timeout)
    kinds = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", params)
    communicators.check_agreement(
        communicator,
        "the arguments of asynchronous.run",
        [settings.common | {"params": str(kinds)}],
    )
    saver, unsaved = None, ()
    if checkpoints is not None:
        saver = Checkpointer(
            checkpoints,
            communicator,
            _identify(algorithm, settings, params, model_state),
            together=False,
        )
    start = begin(algorithm, communicator, params, model_state, saver, gradients)
    model = Model(
        algorithm, start.params, start.state, start.finished, nonfinite == "skip"
    )
    carrier = TRANSPORTS[transport](comm)
    members = Members(comm.rank, communicator.size, settings, carrier)
    members.own.gradients = start.finished
    record = Record(start.finished)
    averager = Averager(model, members, carrier, record, settings)
    try:
        averager.begin("compiling")
        model.compile(compute.compile(start.params, start.model_state))
        averager.start()
        model_state, measured = _train(
            compute,
            model,
            start.model_state,
            averager,
            members,
            saver,
            progress,
            stop,
            nonfinite,
        )
        result = averager.finish()
        if saver is not None:
            _save(saver, model, model_state, members)
            unsaved = saver.finish()
            saver.close()
    except BaseException as error:
        if saver is not None:
            saver.close(wait=False)
        averager.fail(error)
        if carrier.survives:
            leave_alone(comm.rank)
        elif isinstance(error, WorkerLost):
            time.sleep(_LAST_WORDS)
        raise
    if members.lost:
        leave_alone(comm.rank)
    params, state = model.settle()
    workers = jax.tree.map(lambda x: x[None], Workers(params, state, model_state))
    return Outcome(
        jax.tree.map(lambda x: jnp.asarray(x)[None], model.packing.unpack(result.mean)),
        workers,
        measured.stacked(),
        averager.looks,
        Report.of(settings, result.records, members.lost),
        unsaved,
    )


def _identify(algorithm, settings, params, model_state) -> dict[str, str]:
    """What a run has in common with the one with whose checkpoints it goes on."""
    kinds = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", (params, model_state))
    state = jax.eval_shape(algorithm.init, params)
    common = settings.common
    graph = f"{settings.topology.edges} {settings.topology.rounds} {common['rates']}"
    return {
        "the algorithm": type(state).__name__,
        "the optimizer's state": str(jax.tree.structure(state)),
        "the algorithm's constants": _probe(algorithm, params),
        "the graph and rates": f"{zlib.crc32(graph.encode()):08x}",
        "params": str(kinds),
        **{name: common[name] for name in ("pairing", "random_times", "seed")},
    }


def _probe(algorithm: EventTransformation, params: PyTree) -> str:
    """What an averaging and a pause do, which tells an algorithm's constants."""

    @jax.jit
    def act(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        ones = jax.tree.map(jnp.ones_like, params)
        updates, state = algorithm.average(ones, algorithm.init(zeros), zeros)
        mixed, _ = algorithm.mix(updates, state, jnp.float32(1))
        return [jnp.ravel(jax.tree.leaves(tree)[0])[:1] for tree in (updates, mixed)]

    return " ".join(f"{x:.6g}" for values in act(params) for x in values.tolist())


def _train(
    compute: Gradient,
    model: Model,
    model_state: PyTree,
    averager: Averager,
    members: Members,
    saver: Checkpointer | None,
    progress: Callable[[int], object] | None,
    stop: Callable[[], bool] | None,
    nonfinite: NonFinite,
) -> tuple[PyTree, History]:
    """Computes gradients until the run is over; returns model state and metrics."""
    measured = History()
    while not averager.enough():
        turn = model.time.finished
        averager.begin(f"loading the batch of gradient {turn + 1}")
        model.time.begin()
        batch = compute.batch(turn)
        averager.begin(f"computing gradient {turn + 1}")
        began = averager.record.now()
        params, before = model.snapshot(settled=averager.waits)
        grads, new_model_state, metrics = compute(params, model_state, *batch)
        measured.append(metrics)
        averager.check()
        after = model.update(grads, members.gradients)
        averager.record.gradient(began, after - before)
        finite = np.asarray(model.updated)
        if not finite.all():
            averager.record.not_finite(turn + 1)
            if nonfinite == "raise":
                text = describe(members.rank, turn + 1, finite)
                raise NonFiniteError(f"asynchronous.run: {text}", (members.rank,), turn)
        if finite.all() or nonfinite != "skip":
            model_state = new_model_state
        averager.begin(f"waiting for averagings after gradient {turn + 1}")
        averager.step()
        if progress is not None:
            progress(members.gradients)
        if stop is not None and stop():
            averager.stop()
        if saver is not None and saver.due:
            averager.begin("saving a checkpoint")
            _save(saver, model, model_state, members)
    return model_state, measured


def _save(
    saver: Checkpointer, model: Model, model_state: PyTree, members: Members
) -> None:
    with model.lock:
        finished, (params, state) = model.time.finished, model.settle()
    saver.save(finished, (params, state, model_state), sorted(members.lost))
