"""`djax.data`: splits of samples among workers, and the batches of an epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import djax
from djax import communicators, data
from experiments.lib.data import Sampler

LABELS = np.random.default_rng(0).integers(0, 10, size=500)
TREE = {"x": np.arange(500.0) * np.ones((3, 1)), "label": (LABELS,)}
TREE["x"] = TREE["x"].T  # [samples, 3], and the sample's number in each row.
SHARES = data.dirichlet(LABELS, 4, 0.1, seed=3)
SPLITS = {
    "iid": lambda labels, workers, **seed: data.iid(labels, workers, **seed),
    "dirichlet": lambda labels, workers, **seed: data.dirichlet(
        labels, workers, 0.3, **seed
    ),
    "shards": lambda labels, workers, **seed: data.shards(labels, workers, 2, **seed),
}
each_split = pytest.mark.parametrize("name", SPLITS)
FOUR = communicators.simulated(4)


@each_split
def test_shares_are_disjoint_and_cover(name):
    for workers in (1, 3, 23):
        shares = SPLITS[name](LABELS, workers, seed=1)
        assert len(shares) == workers
        np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(500))


@each_split
def test_shares_are_those_of_the_seed(name):
    one, same, other = (SPLITS[name](LABELS, 4, seed=seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@each_split
def test_labels_may_be_names(name):
    names = np.asarray(["cat", "dog", "ant"])[LABELS % 3]
    expected = SPLITS[name](np.asarray([1, 2, 0])[LABELS % 3], 4, seed=1)
    for ours, theirs in zip(SPLITS[name](names, 4, seed=1), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_runs_were_made_with_is_drawn_again():
    """Committed results depend on these draws."""
    assert [share[:3].tolist() for share in data.iid(LABELS, 2, seed=1)] == [
        [275, 281, 170],
        [80, 439, 496],
    ]
    assert [share[:3].tolist() for share in data.shards(LABELS, 2, 2, seed=1)] == [
        [5, 6, 7],
        [267, 281, 283],
    ]
    assert [share[:3].tolist() for share in SHARES[:2]] == [
        [284, 42, 158],
        [440, 291, 174],
    ]


def test_classes_are_counted():
    counts = data.count_classes(LABELS, SHARES)
    for rank, share in enumerate(SHARES):
        expected = [(LABELS[share] == c).sum() for c in range(10)]
        np.testing.assert_array_equal(counts[rank], expected)
    assert counts.shape == (4, 10) and counts.sum() == 500


def test_the_picture_names_classes_and_counts():
    names = np.asarray(["cat", "dog", "ant"])[LABELS % 3]
    axes = data.plot_classes(names, SHARES)
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["ant", "cat", "dog"]
    shown = {text.get_text() for text in axes.texts}
    assert shown == {str(n or "·") for n in data.count_classes(names, SHARES).ravel()}


def test_a_picture_of_many_workers_has_no_numbers():
    given = Figure().subplots()
    axes = data.plot_classes(LABELS, data.iid(LABELS, 40), given)
    assert axes is given and not axes.texts


@pytest.mark.parametrize("epoch", [0, 6])
def test_batches_are_in_the_documented_order(epoch):
    made = data.batches(TREE, SHARES, FOUR, 8, epoch=epoch, seed=3)
    assert made["x"].shape == (4, 15, 8, 3) and made["label"][0].shape == (4, 15, 8)
    for rank, share in enumerate(SHARES):
        rng = np.random.default_rng((3, epoch + 1, rank))
        order = rng.permutation(share)[: 15 * 8].reshape(15, 8)
        np.testing.assert_array_equal(made["x"][rank, ..., 1], order)
        np.testing.assert_array_equal(made["label"][0][rank], LABELS[order])


def test_batches_are_those_of_the_experiments():
    sampler = Sampler(LABELS, 4, "dirichlet:0.1", 8, seed=3)
    made = data.batches(TREE, SHARES, FOUR, 8, epoch=2, seed=3)["x"][..., 0]
    steps = sampler.steps_per_epoch
    for rank in range(4):
        expected = sampler.indices(rank, 2 * steps, 3 * steps)
        np.testing.assert_array_equal(made[rank], expected)


class Process:
    """A process of MPI with one of four workers, as far as batches look at it."""

    size = 4
    permute = None

    def __init__(self, rank):
        self.local_ranks = [rank]


def test_all_communicators_see_the_same_batches():
    together = data.batches(TREE, SHARES, FOUR, 8, epoch=1)
    mesh = data.batches(TREE, SHARES, communicators.mesh(4), 8, epoch=1)
    jax.tree.map(np.testing.assert_array_equal, mesh, together)
    for rank in range(4):
        alone = data.batches(TREE, SHARES, Process(rank), 8, epoch=1)
        for own, all_of_it in zip(
            *map(jax.tree.leaves, (alone, together)), strict=True
        ):
            np.testing.assert_array_equal(own, all_of_it[rank : rank + 1])


def test_all_workers_take_as_many_steps_as_the_smallest_share_has():
    shares = [np.arange(17), np.arange(17, 100)]
    made = data.batches(LABELS, shares, communicators.simulated(2), 5, epoch=0)
    assert made.shape == (2, 3, 5)


def test_an_epoch_can_be_trained_on():
    def gradient_fn(params, model_state, batch):
        difference = params - batch["x"].mean(0)
        return difference, model_state, {"loss": jnp.sum(difference**2)}

    optimizer = djax.dpsgd(0.1, djax.topologies.ring(4), FOUR)
    params = communicators.replicate(FOUR, jnp.zeros(3))
    workers = djax.training.init_workers(optimizer, FOUR, params)
    steps = djax.training.make_steps(gradient_fn, optimizer, FOUR)
    small = {"x": (TREE["x"] / 500).astype(np.float32), "label": TREE["label"]}
    made = data.batches(small, SHARES, FOUR, 8, epoch=0)
    workers, metrics = steps(workers, made)
    assert metrics["loss"].shape == (4, 15)
    assert metrics["loss"][:, -1].mean() < 0.3 * metrics["loss"][:, 0].mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.iid(LABELS, 501), "use at most 500 workers"),
        (lambda: data.iid(LABELS, 0), "iid: workers must be an integer of at least 1"),
        (lambda: data.iid(LABELS, True), "iid: workers must be an integer"),
        (lambda: data.iid(LABELS, 4, seed=-1), "iid: seed must be an integer of at l"),
        (lambda: data.iid(np.eye(3), 2), r"shape \(3, 3\); of one-hot .*argmax"),
        (lambda: data.dirichlet(LABELS, 4, 0), "alpha must be positive, got 0"),
        (lambda: data.dirichlet(LABELS, 4, np.nan), "alpha must be positive, got nan"),
        (lambda: data.dirichlet(LABELS, 4, "1"), "alpha must be positive, got '1'"),
        (lambda: data.dirichlet(LABELS, 4, np.inf), "use iid, which is the limit"),
        (lambda: data.dirichlet(LABELS, 30, 1e-6), "use a larger alpha or fewer"),
        (lambda: data.shards(LABELS, 4, 126), "use from 1 to 125 shards a worker"),
        (lambda: data.shards(LABELS, 4, 0), "use from 1 to 125 shards a worker"),
        (lambda: data.shards(LABELS, 4, 1.5), "per_worker must be an integer"),
        (lambda: data.count_classes(LABELS, 5), "shares must be a list .*, got 5"),
        (lambda: data.count_classes(LABELS, []), "one share a worker"),
        (
            lambda: data.count_classes(LABELS, [np.arange(501)]),
            r"shares\[0\] contains the index 500, but there are 500 samples",
        ),
        (
            lambda: data.count_classes(LABELS, [np.arange(3), np.asarray([-1, 2])]),
            r"shares\[1\] contains the index -1",
        ),
        (
            lambda: data.count_classes(LABELS, [LABELS == 1]),
            r"shares\[0\] must be .* of indices, got one of shape .* dtype bool",
        ),
    ],
)
def test_wrong_splits_are_explained(call, message, monkeypatch):
    monkeypatch.setattr(data, "_MAX_DRAWS", 20)
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": SHARES[:3]}, "there are 3 shares, but the communicator has 4 work"),
        ({"batch_size": 126}, "larger than the smallest share, of 125 .* from 1 to 12"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"epoch": -1}, "epoch must be an integer of at least 0"),
        ({"epoch": 1.5}, "epoch must be an integer"),
        ({"seed": None}, "seed must be an integer"),
        ({"data": {}}, "data has no leaves"),
        (
            {"data": {"x": TREE["x"], "y": LABELS[:400]}},
            r"data\['x'\] has 500 samples, data\['y'\] has 400 samples",
        ),
        ({"data": {"x": TREE["x"], "rate": 0.1}}, r"data\['rate'\] has no axis of"),
        ({"data": LABELS[:400]}, r"contains the index \d+, but there are 400 samples"),
    ],
)
def test_wrong_batches_are_explained(change, message):
    arguments = {
        "data": TREE,
        "shares": SHARES,
        "communicator": FOUR,
        "batch_size": 8,
        "epoch": 0,
    }
    with pytest.raises(ValueError, match=message):
        data.batches(**arguments | change)


def test_batches_name_what_is_not_an_array_or_a_communicator():
    with pytest.raises(TypeError, match=r"data\['name'\] is 'digits', which is no arr"):
        data.batches({"name": "digits"}, SHARES, FOUR, 8, epoch=0)
    with pytest.raises(TypeError, match="batches needs a communicator"):
        data.batches(TREE, SHARES, 4, 8, epoch=0)
