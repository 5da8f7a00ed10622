r"""Figure 8: on a star, where RelaySGD has the smallest delay and D² is slow.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175, appendix.

    python -m experiments.relaysgd.fig8_star           # 32 workers
    python -m experiments.relaysgd.fig8_star --smoke   # seconds

The problems are the paper's random quadratics in 10 dimensions, draw by draw, with
heterogeneity 0, 0.01 and 0.1 and without noise. All methods use the same star; those
with a mixing matrix use Metropolis-Hastings weights. RelaySum/Grad is not in the
paper's figure, but the paper's code runs it afterwards, on a problem of seed 3. The
paper's code records half of the fastest learning rates, and so does this script.

Expect the paper's tuned steps, rates and last errors to four digits or more, except for
one error of D-PSGD. RelaySGD reaches the goal in 8 steps at every heterogeneity. The
run takes about 2 minutes on 2 cores, most of them to compile.
"""

from .curves import Method, Study

# The last error of each of the paper's curves.
DPSGD = 9.951348e-13, 8.871898e-3, 6.151861e-2
D2 = 4.819785e-5, 9.018949e-13, 9.132139e-13
TRACKING = 4.090304e-7, 1.386161e-5, 1.001193e-9
GRAD = 4.400156e-14, 7.907764e-9, 7.908125e-8
RELAY = 5.198376e-13, 5.200406e-13, 5.204725e-13

# The learning rates that the paper's code recorded.
TRACKING_RATES = 0.72265625, 0.01781463623046875, 0.017242431640625
GRAD_RATES = 0.60546875, 0.5859375, 0.5859375
SETTLING = {"every": (2, 11, 100), "plateau": True}
STUDY = Study(
    number=8,
    methods=(
        Method("D-PSGD", "star", DPSGD, max_steps=70_000, **SETTLING),
        Method("D²", "star", D2, 3 * (65,), 3 * (0.078125,)),
        Method("Gradient tracking", "star", TRACKING, (9, 280, 295), TRACKING_RATES),
        Method(
            "RelaySum/Grad", "star", GRAD, 3 * (17,), GRAD_RATES, seed=3, **SETTLING
        ),
        Method("RelaySGD", "star", RELAY, 3 * (8,), 3 * (0.78125,)),
    ),
    zetas=(0, 0.01, 0.1),
    steps=(100, 500, 1000),
    bottom=1e-9,
    caption="RelaySum/Grad runs on another problem (seed 3), as in the paper's code.\n"
    "D-PSGD, ζ² = 0.01: the paper's search for ζ² stops at 0.010004, where the rate "
    "0.00732 just settles above 1e-6 / 1.1\nand ends the search; at 0.01 it is just "
    "below. With 0.010004, rate and error are the paper's: 0.00732, 8.87190e-3.",
)
main = STUDY.script(__name__)

if __name__ == "__main__":
    main()
