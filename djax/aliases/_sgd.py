"""Algorithms that average in every step: SGD and a mechanism, in one call."""

# This file is longer than 300 lines because each function describes all of its
# arguments; most bodies are a single expression.

from collections.abc import Sequence

import optax
from jax.typing import ArrayLike

from djax._arguments import (
    check_decay,
    check_flags,
    check_reliable,
    check_static,
)
from djax._interfaces import Communicator, Compressor
from djax._learning_rate import check_learning_rate
from djax.corrections import check_d2, d2, gradient_tracking, interleave, on_updates
from djax.mechanisms import (
    Missing,
    all_reduce,
    choco_gossip,
    dcd,
    ecd,
    gossip,
    power_gossip,
    push_sum,
    relay,
)
from djax.topologies import Graph, Topology


def _sgd(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    momentum: ArrayLike | None,
    nesterov: bool,
) -> optax.GradientTransformationExtraArgs:
    """Returns `optax.sgd`. Its numbers are checked here, since optax does not check."""
    check_learning_rate(name, learning_rate)
    if momentum is not None:
        check_decay(f"{name}: momentum", momentum)
    check_flags(name, nesterov=nesterov)
    return optax.sgd(learning_rate, momentum, nesterov)


def _averaged(name, averaging, learning_rate, momentum, nesterov):
    """Returns a chain of SGD and a mechanism, which averages after each step of SGD."""
    return optax.chain(_sgd(name, learning_rate, momentum, nesterov), averaging)


def dpsgd(
    learning_rate: optax.ScalarOrSchedule,
    topology: Graph,
    communicator: Communicator,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    consensus_rate: float = 1.0,
    overlap: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""D-PSGD: local SGD steps, each followed by an average over the neighbourhood.

    .. math:: x_i \leftarrow \textstyle\sum_j w_{ij} (x_j - \gamma g_j)
       \qquad\text{(with overlap: } \textstyle\sum_j w_{ij} x_j - \gamma g_i\text{)}

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule.
      topology: the graph and its weights.
      communicator: how messages travel.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.
      consensus_rate: see :func:`djax.gossip`.
      overlap: see :func:`djax.gossip`.

    Returns:
      `chain(sgd, gossip)`.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> optimizer = djax.dpsgd(0.1, ring, communicator, momentum=0.9)

    References:
      Lian et al., `Can Decentralized Algorithms Outperform Centralized Algorithms?
      <https://arxiv.org/abs/1705.09056>`_, 2017
    """
    averaging = gossip(
        topology, communicator, consensus_rate=consensus_rate, overlap=overlap
    )
    return _averaged("dpsgd", averaging, learning_rate, momentum, nesterov)


def all_reduce_sgd(
    learning_rate: optax.ScalarOrSchedule,
    communicator: Communicator,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    overlap: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Data-parallel SGD: every worker steps along the mean of all gradients.

    .. math:: x \leftarrow x - \gamma \tfrac1n \textstyle\sum_j g_j

    The workers have to start with equal models; the models then stay equal. Papers call
    this baseline AR-SGD or centralized SGD.

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule.
      communicator: how messages travel.
      momentum: decay of the momentum, which is the same on every worker.
      nesterov: whether the momentum is Nesterov's.
      overlap: step along the gradients of the step before; see
        :func:`djax.all_reduce`.

    Returns:
      `chain(on_updates(all_reduce), sgd)`.

    Examples:
      >>> import djax
      >>> optimizer = djax.all_reduce_sgd(0.1, djax.communicators.simulated(8))

    References:
      Goyal et al., `Accurate, Large Minibatch SGD <https://arxiv.org/abs/1706.02677>`_,
      2017
    """
    return optax.chain(
        on_updates(all_reduce(communicator, overlap=overlap)),
        _sgd("all_reduce_sgd", learning_rate, momentum, nesterov),
    )


def relay_sgd(
    learning_rate: optax.ScalarOrSchedule,
    tree: Topology | Sequence[Topology],
    communicator: Communicator,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    missing: Missing | None = None,
    overlap: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""RelaySGD: local SGD steps, each followed by a delayed uniform average.

    .. math:: x_i^{t+1} = \tfrac1n \textstyle\sum_j (x_j - \gamma g_j)^{t - \tau_{ij}}

    The fixed points are those of all-reduce, however differently the workers' data are
    distributed. RelaySGD bears a larger learning rate than all-reduce, by the factor
    :func:`djax.relay_learning_rate_factor`.

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule.
      tree: a topology without cycles; or several, such as
        :func:`djax.topologies.double_binary_trees`, among which the coordinates are
        dealt out.
      communicator: how messages travel.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.
      missing: see :func:`djax.relay`.
      overlap: see :func:`djax.relay`.

    Returns:
      `chain(sgd, relay)`, or `chain(sgd, interleave([relay, ...]))`.

    Examples:
      >>> import djax
      >>> trees = djax.topologies.double_binary_trees(16)
      >>> communicator = djax.communicators.simulated(16)
      >>> optimizer = djax.relay_sgd(0.3, trees, communicator, momentum=0.9)

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021, Algorithm 1
    """
    averaging = _relay(tree, communicator, missing, overlap)
    return _averaged("relay_sgd", averaging, learning_rate, momentum, nesterov)


def relay_sgd_grad(
    learning_rate: optax.ScalarOrSchedule,
    tree: Topology | Sequence[Topology],
    communicator: Communicator,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    overlap: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""RelaySum/Grad: every update reaches every worker, once, with weight 1/n.

    .. math:: x_i^{t+1} = x_i^t - \tfrac\gamma n \textstyle\sum_j g_j^{t - \tau_{ij}}

    The models of workers that start equal differ only by the updates that have not
    arrived everywhere. Updates that have not arrived count as zero, and nothing draws
    the models together.

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule.
      tree: as in :func:`djax.relay_sgd`.
      communicator: how messages travel.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.
      overlap: see :func:`djax.relay`.

    Returns:
      `chain(sgd, on_updates(relay))`.

    Examples:
      >>> import djax
      >>> tree, communicator = djax.topologies.star(8), djax.communicators.simulated(8)
      >>> optimizer = djax.relay_sgd_grad(0.1, tree, communicator)

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021, RelaySum/Grad
    """
    # The mechanism sees zeros in place of models. Its latest "model" is therefore zero,
    # and the state need not keep an initial one.
    averaging = on_updates(_relay(tree, communicator, "latest", overlap))
    return _averaged("relay_sgd_grad", averaging, learning_rate, momentum, nesterov)


def _relay(tree, communicator, missing, overlap):
    def over(tree):
        return relay(tree, communicator, missing=missing, overlap=overlap)

    if isinstance(tree, (tuple, list)):
        return interleave([over(t) for t in tree])
    return over(tree)


def d2_sgd(
    learning_rate: optax.ScalarOrSchedule,
    topology: Graph,
    communicator: Communicator,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    consensus_rate: float = 1.0,
    check: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""D²: D-PSGD that is corrected for differences between the workers' data.

    .. math:: x^{t+1} = W \bigl(2 x^t - x^{t-1} - \gamma (g^t - g^{t-1})\bigr)

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule.
      topology: the graph and its weights.
      communicator: how messages travel.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.
      consensus_rate: see :func:`djax.gossip`; 1/2 is exact diffusion.
      check: whether to refuse a mixing matrix with which D² diverges.

    Returns:
      `chain(sgd, d2(gossip))`.

    Raises:
      ValueError: if the mixing matrix has an eigenvalue below -1/3, or the communicator
        loses messages.

    Examples:
      >>> import djax
      >>> ring = djax.topologies.ring(8, weights=1 / 3 - 0.01)
      >>> optimizer = djax.d2_sgd(0.1, ring, djax.communicators.simulated(8))

    References:
      Tang et al., `D²: Decentralized Training over Decentralized Data
      <https://arxiv.org/abs/1803.07068>`_, 2018
    """
    check_reliable("d2_sgd", communicator)
    averaging = gossip(topology, communicator, consensus_rate=consensus_rate)
    if check and isinstance(topology, Topology):
        check_d2("d2_sgd", topology, consensus_rate)
    averaging = d2(averaging, check=check)
    return _averaged("d2_sgd", averaging, learning_rate, momentum, nesterov)


def exact_diffusion(
    learning_rate: optax.ScalarOrSchedule,
    topology: Graph,
    communicator: Communicator,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Exact diffusion: D² with the mixing matrix :math:`(W + I) / 2`, for any graph.

    Args:
      learning_rate: a number or a schedule.
      topology: the graph and its weights.
      communicator: how messages travel.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.

    Returns:
      `d2_sgd` at the consensus rate 1/2.

    Examples:
      >>> import djax
      >>> torus = djax.topologies.torus(9)
      >>> optimizer = djax.exact_diffusion(0.1, torus, djax.communicators.simulated(9))

    References:
      Yuan et al., `Exact Diffusion for Distributed Optimization and Learning
      <https://arxiv.org/abs/1702.05122>`_, 2019
    """
    return d2_sgd(
        learning_rate,
        topology,
        communicator,
        momentum=momentum,
        nesterov=nesterov,
        consensus_rate=0.5,
    )


def gradient_tracking_sgd(
    learning_rate: optax.ScalarOrSchedule,
    topology: Graph,
    communicator: Communicator,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    consensus_rate: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient tracking: D-PSGD along an estimate of all workers' mean gradient.

    Args:
      learning_rate: a number or a schedule.
      topology: the graph and its weights.
      communicator: how messages travel.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.
      consensus_rate: see :func:`djax.gossip`.

    Returns:
      `chain(sgd, gradient_tracking(gossip))`.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> optimizer = djax.gradient_tracking_sgd(0.1, ring, communicator)

    References:
      Pu and Nedić, `Distributed Stochastic Gradient Tracking Methods
      <https://arxiv.org/abs/1805.11454>`_, 2021
    """
    name = "gradient_tracking_sgd"
    check_reliable(name, communicator)
    averaging = gossip(topology, communicator, consensus_rate=consensus_rate)
    tracking = gradient_tracking(averaging)
    return _averaged(name, tracking, learning_rate, momentum, nesterov)


def sgp(
    learning_rate: optax.ScalarOrSchedule,
    schedule: Graph,
    communicator: Communicator,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    rounds: int = 1,
    overlap: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SGP, stochastic gradient push: SGD over directed and time-varying graphs.

    .. math:: z^{t+1} = A^t (z^t - \gamma g(z^t / w^t)), \qquad w^{t+1} = A^t w^t

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule.
      schedule: the directed graph of each step, such as
        :func:`djax.topologies.one_peer_exponential`. If the rows of the matrices do not
        sum to one, take the gradients at :func:`djax.push_sum_eval_params`.
      communicator: how messages travel.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.
      rounds: number of exchanges in each step. The RelaySGD paper uses 2.
      overlap: see :func:`djax.push_sum`.

    Returns:
      `chain(sgd, push_sum)`.

    Examples:
      >>> import djax
      >>> schedule = djax.topologies.one_peer_exponential(8)
      >>> optimizer = djax.sgp(0.1, schedule, djax.communicators.simulated(8), rounds=2)

    References:
      Assran et al., `Stochastic Gradient Push for Distributed Deep Learning
      <https://arxiv.org/abs/1811.10792>`_, 2019
    """
    check_static("sgp", rounds=rounds)
    averaging = push_sum(schedule, communicator, rounds=rounds, overlap=overlap)
    return _averaged("sgp", averaging, learning_rate, momentum, nesterov)


def power_gossip_sgd(
    learning_rate: optax.ScalarOrSchedule,
    topology: Graph,
    communicator: Communicator,
    *,
    rank: int = 1,
    iterations: int = 1,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    consensus_rate: float = 1.0,
    rows_axis: int = -1,
    overlap: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""D-PSGD whose neighbours exchange their differences in low rank.

    It sends about 1/50 of the bytes. The learning rate and all other hyperparameters
    can be those of :func:`dpsgd`.

    Args:
      learning_rate: a number or a schedule.
      topology: the graph and its weights.
      communicator: how messages travel.
      rank: see :func:`djax.power_gossip`.
      iterations: see :func:`djax.power_gossip`.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.
      consensus_rate: see :func:`djax.power_gossip`.
      rows_axis: see :func:`djax.power_gossip`; 0 for weights of equinox and PyTorch.
      overlap: see :func:`djax.power_gossip`; True in the paper's experiments.

    Returns:
      `chain(sgd, power_gossip)`.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> optimizer = djax.power_gossip_sgd(0.1, ring, communicator, momentum=0.9)

    References:
      Vogels, Karimireddy and Jaggi, `PowerGossip: Practical Low-Rank Communication
      Compression in Decentralized Deep Learning <https://arxiv.org/abs/2008.01425>`_,
      2020
    """
    static = {"rank": rank, "iterations": iterations, "rows_axis": rows_axis}
    check_static("power_gossip_sgd", **static)
    averaging = power_gossip(
        topology,
        communicator,
        rank,
        iterations,
        consensus_rate=consensus_rate,
        rows_axis=rows_axis,
        overlap=overlap,
    )
    return _averaged("power_gossip_sgd", averaging, learning_rate, momentum, nesterov)


def choco_sgd(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology,
    communicator: Communicator,
    compressor: Compressor,
    consensus_rate: float,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    overlap: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""CHOCO-SGD: D-PSGD with public copies of models, by compressed changes.

    Args:
      learning_rate: a number or a schedule.
      topology: the graph and its weights.
      communicator: how messages travel.
      compressor: the code of the messages, a contraction.
      consensus_rate: see :func:`djax.choco_gossip`.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.
      overlap: see :func:`djax.choco_gossip`.

    Returns:
      `chain(sgd, choco_gossip)`.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> code = djax.compressors.sign()
      >>> optimizer = djax.choco_sgd(0.1, ring, communicator, code, 0.45)

    References:
      Koloskova, Stich and Jaggi, `Decentralized Stochastic Optimization and Gossip
      Algorithms with Compressed Communication <https://arxiv.org/abs/1902.00340>`_,
      2019, Algorithm 2
    """
    averaging = choco_gossip(
        topology, communicator, compressor, consensus_rate, overlap=overlap
    )
    return _averaged("choco_sgd", averaging, learning_rate, momentum, nesterov)


def dcd_psgd(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology,
    communicator: Communicator,
    compressor: Compressor,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""DCD-PSGD: D-PSGD with exact copies of the neighbours' models.

    The workers send compressed changes of their models.

    Args:
      learning_rate: a number or a schedule.
      topology: the graph and its weights.
      communicator: how messages travel.
      compressor: the code of the messages, unbiased and fine.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.

    Returns:
      `chain(sgd, dcd)`.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> code = djax.compressors.quantize(8)
      >>> optimizer = djax.dcd_psgd(0.1, ring, communicator, code)

    References:
      Tang et al., `Communication Compression for Decentralized Training
      <https://arxiv.org/abs/1803.06443>`_, 2018, Algorithm 1
    """
    averaging = dcd(topology, communicator, compressor)
    return _averaged("dcd_psgd", averaging, learning_rate, momentum, nesterov)


def ecd_psgd(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology,
    communicator: Communicator,
    compressor: Compressor,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""ECD-PSGD: D-PSGD with estimates of the neighbours' models.

    The workers send compressed models, extrapolated beyond the step that they made.

    Args:
      learning_rate: a number or a schedule.
      topology: the graph and its weights.
      communicator: how messages travel.
      compressor: the code of the messages, unbiased.
      momentum: decay of the local momentum, which is not communicated.
      nesterov: whether that momentum is Nesterov's.

    Returns:
      `chain(sgd, ecd)`.

    Examples:
      >>> import djax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> code = djax.compressors.quantize(8)
      >>> optimizer = djax.ecd_psgd(0.1, ring, communicator, code)

    References:
      Tang et al., `Communication Compression for Decentralized Training
      <https://arxiv.org/abs/1803.06443>`_, 2018, Algorithm 2
    """
    averaging = ecd(topology, communicator, compressor)
    return _averaged("ecd_psgd", averaging, learning_rate, momentum, nesterov)
