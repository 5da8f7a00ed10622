"""Runs an asynchronous algorithm in real time, with one process for each worker.

Every process has two threads, so that gradients never wait for messages. The main
thread computes gradients (:mod:`djax.asynchronous.runtime._worker`). The averaging
thread (:mod:`djax.asynchronous.runtime._averager`) exchanges models meanwhile. Both
change one model (:mod:`djax.asynchronous.runtime._model`). They can run at the same
time, since JAX releases the interpreter's lock while it computes, and MPI and ZeroMQ
release the lock while they wait.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from djax import communicators
from djax._arrays.checks import check_leading_axis
from djax._interfaces import Communicator, PyTree
from djax.topologies import Topology
from djax.training import (
    Checkpoints,
    GradientFn,
    NonFinite,
    Workers,
    check_gradient_fn,
)
from djax.transport import TRANSPORTS, leave_alone, meet

from ..algorithms import Asked, EventTransformation, other_rates
from ..simulator import OwnBatches
from ._averager import Averager, WorkerSnapshot
from ._gradient import Gradient
from ._groups import Alone, Group, check_group
from ._identity import describe_arrays, identify
from ._members import START_PATIENCE, Members, WorkerLost
from ._model import Model
from ._record import Record
from ._report import Report
from ._resume import begin
from ._settings import Settings, check_participants
from ._worker import Worker

# Seconds that a rank waits, so that a failed worker can report its error before the job
# ends.
_LAST_WORDS = 2.0


class Outcome(NamedTuple):
    """The results of a run on one worker.

    Attributes:
      params: the mean of all workers' models, equal on all workers, with a leading axis
        of 1.
      workers: this worker's model, state and model state, with a leading axis of 1. If
        workers are groups, the state belongs to the share of this member.
      metrics: metrics of this worker's gradients, `[1, gradients, ...]`.
      snapshots: this worker's snapshots during the run, if they were kept.
      report: what all workers did, equal on all workers. If workers are groups, it has
        the averagings of the first members.
      unsaved: one line for each checkpoint of this worker that could not be written.
    """

    params: PyTree
    workers: Workers
    metrics: PyTree
    snapshots: list[WorkerSnapshot]
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
    local: Communicator | None = None,
    gradients: int | None = None,
    seconds: float | None = None,
    rate: Any = 1.0,
    pairing: str = "edge_clocks",
    random_times: bool = True,
    max_backlog: int | None = None,
    model_state: PyTree = (),
    snapshots: int = 20,
    keep_snapshots: bool = False,
    progress: Callable[[int], object] | None = None,
    stop: Callable[[], bool] | None = None,
    checkpoints: Checkpoints | None = None,
    transport: str = "mpi",
    timeout: float = 60.0,
    jit: bool = True,
    seed: int = 0,
    nonfinite: NonFinite = "raise",
) -> Outcome:
    """Trains asynchronously, so that no worker ever waits for another.

    All ranks of an MPI job call this function. Each rank computes gradients back to
    back, while a second thread averages with neighbours. The displacement of an
    averaging is added to the model that the worker has by then, so that no gradient is
    lost. A worker counts time in its own gradients: a slow worker averages less often,
    and mixes more slowly. The fraction of the current gradient that has passed is
    estimated from the durations of earlier gradients.

    The arguments from `topology` on have to be equal on all ranks, except `params`,
    `model_state`, `progress` and `stop`. After a run in which a worker was lost
    (`report.lost`), do not communicate any more, since MPI would wait for that worker.

    Args:
      algorithm: the algorithm, made by :func:`djax.acid` or :func:`djax.adpsgd`.
      gradient_fn: the function by which ONE worker computes its gradient,
        `(params, model_state, batch) -> (grads, model_state, metrics)`, as in
        :func:`djax.training.make_steps`.
      batches: `epoch -> tree` with leaves `[1, steps, ...]`, this worker's data of the
        epochs 0, 1, ... All epochs have the same number of steps.
      communicator: the communicator, made by :func:`djax.communicators.mpi`; with
        groups, the second one of :func:`djax.communicators.grouped`.
      topology: which workers are neighbours.
      params: the first model, with a leading axis of 1. All workers start from the
        model of rank 0.
      local: the first communicator of :func:`djax.communicators.grouped`. A worker of
        the graph is then a group of ranks, such as those of a node. The gradient of a
        group is the mean of its members' gradients, for which they wait for each other.
        Each member averages its own share of the model with the members at the same
        place of other groups, at times of its own, so that all links between groups are
        used. Optimizer and algorithm see shares alone, and have to treat each
        coordinate by itself. If a rank is lost, the run ends.
      gradients: the run ends when all workers together have computed this many
        gradients. Gradients that are being computed then are still applied.
      seconds: the run ends after this time. If `gradients` is given too, the run ends
        at whatever comes first.
      rate: averagings of a worker per gradient of its own, or of each pair,
        `float[n, n]`, as in :func:`djax.asynchronous.edge_rates`. A rate below 1 gives
        local SGD; at rate 0 there are no averagings. The constants of :func:`djax.acid`
        should be made for the same rate. Rank 0 warns if they are known to be made for
        another rate.
      pairing: how neighbours find each other. With `"edge_clocks"` each pair averages
        at the times of a Poisson process of its own, as in the papers' analysis. With
        `"first_free"` a worker averages with the first of its neighbours, in random
        order, that wants to average, too. With `"fixed_order"` it averages with one
        neighbour after another, in the order of `topology.rounds`, which is the
        schedule of AD-PSGD.
      random_times: whether a worker wants its averagings at the times of a Poisson
        process, or in constant intervals. `"edge_clocks"` are always random.
      max_backlog: largest number of averagings that may be due and not made when a
        gradient begins. Otherwise the gradient waits. With 0 the run works like the
        paper's program. By default gradients never wait. If the network is too slow for
        the rate, averagings that are not made yet are dropped at the end of the run.
      model_state: values that a gradient passes on to the next one, with a leading axis
        of 1.
      snapshots: number of snapshots, spread over the run, at which the consensus
        distance is estimated.
      keep_snapshots: whether the models of snapshots are kept, in the device's memory.
      progress: a function that is called after each gradient of this worker, with the
        number of gradients of all workers together.
      stop: a function that is called after each gradient of this worker. Once it
        returns True on any rank, the run ends for all workers, with an outcome as at
        any other end. `run` handles no signals. A script that is to end its run on
        SIGTERM or Ctrl-C sets a flag in a handler of its own, which `stop` returns::

          signals = []
          for number in (signal.SIGTERM, signal.SIGINT):
              signal.signal(number, lambda number, frame: signals.append(number))
          outcome = djax.asynchronous.run(..., stop=lambda: bool(signals))

      checkpoints: where to save and resume; by default nothing is saved. Each worker
        saves from time to time, and at the end of the run, also if `stop` has ended
        it. If `resume` is True in it, rank 0 says on stderr after how many gradients
        the run goes on.
      transport: what carries the messages, `"mpi"` or `"zmq"`. With `"zmq"` the other
        workers continue when a worker is lost. For this the job has to be launched with
        `mpirun -disable-auto-cleanup` and :mod:`djax.guard`.
      timeout: seconds without a sign of life after which a worker is lost.
      jit: whether `gradient_fn` is compiled; False for a plain Python function.
      seed: seed of the times of averagings, and of the choices among neighbours.
      nonfinite: what happens if a gradient is not finite, or leads to a model that is
        not finite.

        * "raise": the run ends on all ranks.
        * "skip": the gradient is not applied and the model state stays as it was
          before, although the gradient counts as computed.
        * "isolate": the gradient is applied, and the worker continues with the result.

        In each case models that are not finite are neither averaged with others nor
        part of the mean in the end. `report.nonfinite_counts` and `report.left_out`
        show in which workers this happened.

    Returns:
      The :class:`Outcome`.

    Raises:
      TypeError: if an argument has a wrong type.
      ValueError: before anything is computed, if an argument is out of range.
      RuntimeError: if MPI does not allow two threads to communicate, if a rank does not
        take part, or if a worker is lost and the others cannot go on without it. The
        message names the worker and what it was doing.
      djax.asynchronous.NonFiniteError: if a gradient or model is not finite and
        `nonfinite` is "raise". It names the worker and its gradient, and is a
        `FloatingPointError`.

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
    check_group(local, communicator, transport)
    comm = check_participants(algorithm, communicator, topology)
    settings = Settings(
        topology,
        rate,
        gradients=gradients,
        seconds=seconds,
        pairing=pairing,
        random_times=random_times,
        max_backlog=max_backlog,
        snapshots=snapshots,
        keep_snapshots=keep_snapshots,
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
    meet(comm, "asynchronous.run", START_PATIENCE * timeout)
    communicators.check_agreement(
        communicator,
        "the arguments of asynchronous.run",
        [settings.common | {"params": describe_arrays(params)}],
    )
    group = Alone(communicator)
    if local is not None:
        group = Group(local, communicator, params)
    params, communicator = group.share(params), group.circle
    comm = communicator.host_comm
    saver, unsaved = None, ()
    if checkpoints is not None:
        identity = identify(algorithm, settings, params, model_state)
        saver = group.saver(checkpoints, identity)
    resume = checkpoints is not None and checkpoints.resume
    start = begin(
        algorithm, communicator, params, model_state, saver, gradients, resume
    )
    model = Model(
        algorithm, start.params, start.state, start.finished, nonfinite == "skip"
    )
    carrier = TRANSPORTS[transport](comm)
    members = Members(comm.rank, communicator.size, settings, carrier)
    members.own.gradients = start.finished
    averager = Averager(model, members, carrier, Record(start.finished), settings)
    compute = Gradient(group.together(gradient_fn), stream, jit)
    worker = Worker(
        *(compute, model, averager, members, nonfinite, saver, progress, stop, group)
    )
    try:
        averager.begin("compiling")
        model.compile(compute.compile(start.params, start.model_state))
        averager.start()
        model_state, metrics = worker.train(start.model_state)
        result = averager.finish()
        if saver is not None:
            worker.save(model_state)
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
    mean = group.collect(model.packing.unpack(result.mean))
    own = Workers(*model.settle(), model_state)
    own = own._replace(params=group.collect(own.params))
    return Outcome(
        jax.tree.map(lambda x: jnp.asarray(x)[None], mean),
        jax.tree.map(lambda x: x[None], own),
        metrics,
        group.snapshots(averager.snapshots),
        Report.of(settings, group.first(result.records), members.lost),
        unsaved,
    )
