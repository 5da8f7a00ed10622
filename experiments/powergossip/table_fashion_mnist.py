"""Runs and draws :mod:`experiments.configs.powergossip.table_fashion_mnist`."""

from ..configs.powergossip import table_fashion_mnist
from ..lib import study
from . import tradeoff

main = study.script(__file__, table_fashion_mnist, tradeoff.draw)

if __name__ == "__main__":
    main()
