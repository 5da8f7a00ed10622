r"""D²: decentralized training over decentralized data.

If the workers' data differ, their gradients point in different directions, and each
averaging moves every model away from where its own gradients lead. D-PSGD with a
constant step size therefore does not reach the optimum. D² remembers the displacement
:math:`c_i` of an averaging, and adds it to the model before the next one. At the
optimum :math:`c_i` and the update cancel, so that averaging moves nothing. With the
update :math:`u_i^t` of the links before it and any mechanism,

.. math::
   x_i^{t+1} &= \operatorname{average}_i(x_1^t + u_1^t + c_1^t, \dots),
       \qquad & c_i^0 &= 0, \\
   c_i^{t+1} &= x_i^{t+1} - x_i^t - u_i^t,

which for gossip is :math:`x^{t+1} = W (2 x^t - x^{t-1} + u^t - u^{t-1})`.

Tang et al., `D²: Decentralized Training over Decentralized Data
<https://arxiv.org/abs/1803.07068>`_, 2018.
"""

from typing import NamedTuple

import jax
import numpy as np
import optax

from djax import _networkx as nx
from djax._arguments import check_flags
from djax._calls import by_its_call
from djax._mechanism.value import Mechanism, parts_of
from djax.topologies import Topology

from ._corrected import corrected
from ._stability import growth, rounded_down, smallest_eigenvalue

# With a smaller eigenvalue, the recursion of D² has one outside of the unit circle.
SMALLEST_EIGENVALUE = -1 / 3


class D2State(NamedTuple):
    """State of :func:`d2`.

    Attributes:
      correction: :math:`c_i`, a tree like the parameters: by how much the last change
        of the model differed from the update.
      mechanism_state: the state of the wrapped mechanism.
    """

    correction: optax.Updates
    mechanism_state: optax.OptState


@by_its_call
def d2(mechanism: optax.GradientTransformation, *, check: bool = True) -> Mechanism:
    r"""Corrects a mechanism for differences between the workers' data.

    .. math::
       x_i &\leftarrow \operatorname{average}_i(x_1 + u_1 + c_1, \dots, x_n + u_n + c_n)
       \\ c_i &\leftarrow (\text{new } x_i) - x_i - u_i

    With :func:`djax.gossip`, D² converges only if no eigenvalue of the mixing matrix is
    below -1/3, which is checked. With gossip at half the consensus rate, D² is exact
    diffusion, which always converges. D² sends what the mechanism sends.

    The mechanism has to average nearly exactly. Low ranks of :func:`djax.power_gossip`
    and coarse codes of :func:`djax.choco_gossip` leave out much. D² would add this
    again in each step, so that it grows. With such mechanisms use
    :func:`djax.gradient_tracking`.

    Args:
      mechanism: any mechanism without `overlap` that averages nearly exactly, and loses
        no messages. It cannot be :func:`djax.relay`, whose averages contain older
        models.
      check: whether to refuse mechanisms with which D² diverges.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a :class:`D2State`.

    Raises:
      ValueError: if the mechanism overlaps, loses messages or averages older models; if
        it is :func:`djax.gossip` with an eigenvalue below -1/3, or over a schedule on
        which the recursion grows, :func:`djax.push_sum` with weights that are not 1,
        :func:`djax.sparse`, another correction, or an optimizer such as
        :func:`djax.quasi_global_momentum`.

    Examples:
      >>> import djax, optax
      >>> ring, communicator = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> averaging = djax.d2(djax.gossip(ring, communicator, consensus_rate=0.5))
      >>> exact_diffusion_adam = optax.chain(optax.adam(1e-3), averaging)

    References:
      Tang et al., `D²: Decentralized Training over Decentralized Data
      <https://arxiv.org/abs/1803.07068>`_, 2018

      Yuan et al., `Exact Diffusion for Distributed Optimization and Learning
      <https://arxiv.org/abs/1702.05122>`_, 2019
    """
    check_flags("d2", check=check)
    refused = (
        *("losses", "old_models", "partial", "rounded_sums"),
        *("optimizer", "correction"),
    )
    made = corrected("d2", mechanism, D2State, refused)
    for part in parts_of(mechanism) if check else ():
        if part.matrices is not None:
            _check_convergence(part.name, part.matrices())
    return made


def _check_convergence(mechanism: str, matrices: np.ndarray) -> None:
    """Raises ValueError if D² diverges with these matrices, one for each step."""
    smallest = smallest_eigenvalue(matrices)
    if smallest is not None:
        if smallest >= SMALLEST_EIGENVALUE - 1e-6:  # Rates may be float32.
            return
        problem = (
            f"the smallest eigenvalue of its averages is {smallest:.4f}, and may not "
            f"be below {SMALLEST_EIGENVALUE:.4f}. Use a topology with weights='lazy', "
            "or half the consensus_rate"
        )
    else:
        factor = growth(matrices)
        if factor < 1 - 1e-9:  # If nothing shrinks, rounding errors add up.
            return
        problem = (
            "over a period the differences between the workers, which have to shrink, "
            f"are multiplied by {factor:.4g}. Use a smaller consensus_rate (that of "
            "exact diffusion is 0.5), or a topology in place of a schedule"
        )
    raise ValueError(f"d2 diverges with this {mechanism}: {problem}.")


def check_d2(name: str, topology: Topology, consensus_rate: float = 1.0) -> None:
    r"""Raises ValueError if D² over gossip on the topology diverges.

    That is so if :math:`\lambda_{\min}` of :math:`(1 - \rho) I + \rho W` is below -1/3.
    A traced rate, which `optax.inject_hyperparams` passes, cannot be checked.
    """
    if isinstance(consensus_rate, jax.core.Tracer):
        return
    consensus_rate = float(consensus_rate)
    smallest = 1 - consensus_rate * (1 - topology.lambda_min)
    if smallest >= SMALLEST_EIGENVALUE - 1e-6:  # Rates may be float32.
        return
    raise ValueError(
        f"{name} diverges on {topology!r}: the smallest eigenvalue of its mixing "
        f"matrix is {smallest:.4f}, and may not be below -1/3. Use weights='lazy', or "
        f"edge weights of at most {_largest_edge_weight(topology, consensus_rate):.4g}."
    )


def _largest_edge_weight(topology: Topology, consensus_rate: float) -> float:
    """The largest equal weight of all edges that D² allows, rounded down."""
    laplacian = nx.laplacian_matrix(topology.graph, weight="multiplicity").toarray()
    stable = (1 - SMALLEST_EIGENVALUE) / np.linalg.eigvalsh(laplacian)[-1]
    return rounded_down(min(stable / consensus_rate, 1 / laplacian.diagonal().max()))
