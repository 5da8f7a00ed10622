r"""Figure 8: on a star, where RelaySGD has the smallest delay and D² is slow.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175, appendix.

    python -m experiments.relaysgd.fig8_star           # 32 workers
    python -m experiments.relaysgd.fig8_star --smoke   # seconds

Random quadratics in 10 dimensions, the paper's draw, with heterogeneity 0, 0.01 and
0.1, without noise. All methods use the same star, with Metropolis-Hastings weights for
those that mix. RelaySum/Grad is not in the paper's figure: its code runs it afterwards,
on a problem of seed 3. It also writes down half of the fastest rates: "recorded".

Expect the paper's tuned steps, rates and last errors, to four digits and more but for
one of D-PSGD: RelaySGD arrives in 8 steps, whatever the heterogeneity. About 2 minutes
on 2 cores, most of it to compile.
"""

from collections.abc import Sequence
from typing import Any

import djax
from djax import topologies

from . import curves
from .curves import Method, Published
from .methods import over

EVERY = (2, 11, 100)


def methods(n: int) -> tuple[Method, ...]:
    """What the figure compares, for a number of workers."""
    star = topologies.star(n)
    return (
        Method(
            "D-PSGD",
            "star",
            over(djax.dpsgd, star),
            (
                Published(9.951348e-13),
                Published(8.871898e-3),
                Published(6.151861e-2),
            ),
            every=EVERY,
            plateau=True,
            max_steps=70_000,
        ),
        Method(
            "D²",
            "star",
            over(djax.d2_sgd, star),
            (
                Published(4.819785e-5, 65, 0.078125),
                Published(9.018949e-13, 65, 0.078125),
                Published(9.132139e-13, 65, 0.078125),
            ),
        ),
        Method(
            "Gradient tracking",
            "star",
            over(djax.gradient_tracking_sgd, star),
            (
                Published(4.090304e-7, 9, 0.72265625),
                Published(1.386161e-5, 280, 0.01781463623046875),
                Published(1.001193e-9, 295, 0.017242431640625),
            ),
        ),
        Method(
            "RelaySum/Grad",
            "star",
            over(djax.relay_sgd_grad, star),
            (
                Published(4.400156e-14, 17, 0.60546875),
                Published(7.907764e-9, 17, 0.5859375),
                Published(7.908125e-8, 17, 0.5859375),
            ),
            every=EVERY,
            plateau=True,
            seed=3,
        ),
        Method(
            "RelaySGD",
            "star",
            over(djax.relay_sgd, star),
            (
                Published(5.198376e-13, 8, 0.78125),
                Published(5.200406e-13, 8, 0.78125),
                Published(5.204725e-13, 8, 0.78125),
            ),
        ),
    )


STUDY = curves.Study(
    number=8,
    methods=methods,
    zetas=(0, 0.01, 0.1),
    steps=(100, 500, 1000),
    bottom=1e-9,
    caption="RelaySum/Grad runs on another problem (seed 3), as in the paper's code.\n"
    "D-PSGD, ζ² = 0.01: the paper's search for ζ² stops at 0.010004, where the rate "
    "0.00732 just settles above 1e-6 / 1.1\nand ends the search; at 0.01 it is just "
    "below. With 0.010004, rate and error are the paper's: 0.00732, 8.87190e-3.",
)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.

    Returns:
      The records.
    """
    return curves.main(STUDY, __file__, __doc__, arguments)


if __name__ == "__main__":
    main()
