r"""Figure 10: RelaySGD relays models, RelaySum/Grad updates; D-PSGD for comparison.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175, appendix.

    python -m experiments.relaysgd.fig10_gradient_variant           # 32 workers
    python -m experiments.relaysgd.fig10_gradient_variant --smoke   # seconds

Random quadratics in 10 dimensions, the paper's draw, with heterogeneity 0, 0.01 and 1,
without noise. For RelaySGD the paper's code writes down half of the fastest rate:
"recorded".

Expect the paper's tuned steps and rates, and its last errors to three digits. Both
variants mind heterogeneity much less than D-PSGD does, but only RelaySGD converges to
the optimum: RelaySum/Grad stops where its workers differ. About a minute on 2 cores.
"""

from .curves import Method, Study

# The paper's last error of each curve.
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
