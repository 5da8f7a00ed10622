"""The command of :mod:`experiments.configs.powergossip.table_fashion_mnist`."""

import functools

from ..configs.powergossip import table_fashion_mnist
from ..lib import study
from . import tradeoff

draw = functools.partial(tradeoff.draw, "mean test accuracy of the workers, %")
main = functools.partial(study.main, __file__, table_fashion_mnist, draw)

if __name__ == "__main__":
    main()
