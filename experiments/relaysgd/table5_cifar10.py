"""The command of :mod:`experiments.configs.relaysgd.table5_cifar10`."""

import functools

from ..configs.relaysgd import table5_cifar10
from ..lib import papers

main = functools.partial(papers.main, __file__, table5_cifar10)

if __name__ == "__main__":
    main()
