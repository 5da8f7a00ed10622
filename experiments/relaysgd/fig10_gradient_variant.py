r"""Figure 10: RelaySGD relays models, and its variant RelaySum/Grad relays updates.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175, appendix.

    python -m experiments.relaysgd.fig10_gradient_variant           # 32 workers
    python -m experiments.relaysgd.fig10_gradient_variant --smoke   # seconds

The problems are the paper's random quadratics in 10 dimensions, draw by draw, with
heterogeneity 0, 0.01 and 1 and without noise. D-PSGD is shown for comparison. For
RelaySGD half of the fastest learning rate is recorded, as in the paper's code.

Expect the paper's tuned steps and rates, and its last errors to three digits.
Heterogeneity harms both variants much less than D-PSGD. Only RelaySGD converges to the
optimum if workers differ; RelaySum/Grad stops at a distance from it. The run takes
about a minute on 2 cores.
"""

from .curves import Method, Study

# The last error of each of the paper's curves.
DPSGD = 5.027452e-13, 8.776454e-7, 1.445627e-3
GRAD = 7.337736e-11, 2.026518e-8, 8.653164e-7
RELAY = 5.317039e-10, 9.848754e-13, 9.590106e-13

RELAY_RATES = 0.869140625, 0.869140625, 0.8837890625
SETTLING = {"every": (2, 5, 20), "plateau": True, "max_steps": 70_000}
STUDY = Study(
    number=10,
    methods=(
        Method("D-PSGD", "ring", DPSGD, **SETTLING),
        Method("RelaySum/Grad", "chain", GRAD, **SETTLING),
        Method("RelaySGD", "chain", RELAY, (51, 51, 50), RELAY_RATES),
    ),
    zetas=(0, 0.01, 1),
    steps=(200, 500, 2000),
    bottom=1e-9,
)
main = STUDY.script(__name__)

if __name__ == "__main__":
    main()
