"""How a run ends with the same result on all workers that are left."""

import collections
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from asynchronous_parts import Network, make_settings, values

from djax import topologies
from djax.asynchronous.runtime._ending import Ending
from djax.asynchronous.runtime._members import Members, Say
from djax.asynchronous.runtime._record import Record
from djax.transport import Packing, as_bytes

pytestmark = pytest.mark.usefixtures("as_users")


class Worker:
    """One that has done its part, and only takes part in the end."""

    def __init__(self, rank, network, model):
        settings = make_settings(topologies.complete(network.size))
        self.members = Members(rank, network.size, settings, network.line(rank))
        record = Record()
        record.gradient(float(rank), rank)
        record.snapshot(1, np.full(3, rank, np.float32))
        self.ending = Ending(
            self.members,
            lambda: [*map(as_bytes, model), *record.pack()],
            Packing(model),
        )
        self.over = False

    def advance(self):
        self.over = self.over or self.ending.advance()

    def lose(self, peer):
        if peer not in self.members.lost:
            self.members.lose(peer, "has died")

    def handle(self, sender, header, buffers):
        kind, *content = json.loads(header)
        if sender not in self.members.others:
            return
        if kind == Say.LOST:
            self.lose(content[0])
        else:
            self.ending.hear(sender, kind, content, buffers)


def models_of(size, dtype):
    first = [[256, 1, 1, 5][rank] for rank in range(size)]  # 256 + 1 == 256 there.
    models = [
        [jnp.asarray([x, rank], dtype), values((2, 3), "float32", rank)]
        for rank, x in enumerate(first)
    ]
    return [Packing(model).pack(model) for model in models]  # As they travel.


def end_together(models, rng, dies_after=math.inf, patient=True):
    """Delivers messages in random order until all have left.

    Args:
      models: of the workers.
      rng: draws the order.
      dies_after: number of messages after which worker 0 does nothing any more.
      patient: whether nobody notices before all messages have arrived; or else, before
        those of worker 0 have arrived there.

    Returns:
      The workers that have not died.
    """
    network = Network(len(models))
    workers = [Worker(rank, network, model) for rank, model in enumerate(models)]
    living, count = dict(enumerate(workers)), 0
    for worker in workers:
        worker.advance()
    while True:
        if count >= dies_after:
            living.pop(0, None)
        here = [rank for rank, worker in living.items() if not worker.over]
        if not here:
            return list(living.values())
        moving = [
            ends
            for ends, queue in network.channels.items()
            if queue and ends[1] in here
        ]
        noticing = []
        if 0 not in living and not (patient and moving):
            noticing = [
                (0, rank)
                for rank in here
                if (0, rank) not in moving and 0 in workers[rank].members.others
            ]
        choices = moving + noticing
        assert choices, "all wait for ever"
        sender, receiver = choices[rng.integers(len(choices))]
        if (sender, receiver) in moving:
            message = network.channels[sender, receiver].popleft()
            workers[receiver].handle(sender, *message)
        else:
            workers[receiver].lose(sender)
        workers[receiver].advance()
        if workers[receiver].over:  # Nobody leaves before everyone has the result.
            assert all(worker.ending.result for worker in living.values())
        count += 1


def check_results(workers, models):
    """All have the same; returns whose it is."""
    ranks = sorted(workers[0].ending.result.records)
    for worker in workers:
        mean, records = worker.ending.result
        assert sorted(records) == ranks
        for rank, record in records.items():
            assert record["gradients"][:, 0].tolist() == [rank]
            assert record["staleness"].tolist() == [rank]
            np.testing.assert_array_equal(record["sketches"], [[rank] * 3])
        for k, ours in enumerate(mean):
            theirs = [np.asarray(models[rank][k], np.float64) for rank in ranks]
            assert ours.dtype == models[0][k].dtype
            exact = np.float32(np.mean(theirs, 0)).astype(ours.dtype)
            np.testing.assert_allclose(
                np.float32(ours), np.float32(exact), rtol=1e-6, atol=1e-6
            )
    return ranks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 3])
def test_all_end_with_the_mean_and_all_records(size, dtype):
    models = models_of(size, dtype)
    workers = end_together(models, np.random.default_rng(size))
    assert len(workers) == size
    assert check_results(workers, models) == list(range(size))


@pytest.mark.parametrize("patient", [True, False])
def test_when_the_root_is_lost_the_next_one_starts_over(patient):
    models, rng = models_of(4, "bfloat16"), np.random.default_rng(0)
    seen = collections.Counter()
    for dies_after in range(18):
        for _ in range(4):
            survivors = end_together(models, rng, dies_after, patient)
            assert {worker.members.rank for worker in survivors} >= {1, 2, 3}
            seen[len(check_results(survivors, models))] += 1
    assert seen[3] > 10 and seen[4] > 10  # Before, and after it had sent the mean.


def test_another_loss_does_not_stop_the_end():
    """Worker 2 dies before it has sent anything; the root learns of it late."""
    models = models_of(3, "float32")
    network = Network(3)
    workers = [Worker(rank, network, models[rank]) for rank in range(2)]
    for _ in range(2):
        for receiver, worker in enumerate(workers):
            worker.advance()
            channel = network.channels[1 - receiver, receiver]
            while channel:
                worker.handle(1 - receiver, *channel.popleft())
    assert not any(worker.over for worker in workers)
    workers[0].lose(2)
    for _ in range(3):
        for receiver, worker in enumerate(workers):
            channel = network.channels[1 - receiver, receiver]
            while channel:
                worker.handle(1 - receiver, *channel.popleft())
            worker.advance()
    assert all(worker.over for worker in workers)
    assert check_results(workers, models) == [0, 1]
    assert set(network.forgotten) == {(0, 2), (1, 2)}


def test_who_has_the_result_can_leave_after_one_that_has_left():
    """The root dies between telling two others that it has the result."""
    models, network = models_of(3, "float32"), Network(3)
    workers = [Worker(rank, network, model) for rank, model in enumerate(models)]

    def deliver(sender, receiver):
        while network.channels[sender, receiver]:
            message = network.channels[sender, receiver].popleft()
            workers[receiver].handle(sender, *message)
        workers[receiver].advance()

    for worker in workers:
        worker.advance()
    deliver(1, 0)
    deliver(2, 0)  # The root sends the mean, and its last words after it.
    network.channels[0, 2].pop()  # Which do not reach worker 2.
    deliver(0, 2)
    deliver(0, 1)
    deliver(2, 1)
    assert workers[1].over and not workers[2].over
    deliver(1, 2)
    workers[2].lose(0)
    workers[2].advance()
    assert workers[2].over
    assert check_results(workers[1:], models) == [0, 1, 2]
