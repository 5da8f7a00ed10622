"""The command of :mod:`experiments.configs.relaysgd.table2_cifar10`."""

import functools

from ..configs.relaysgd import table2_cifar10
from ..lib import papers

main = functools.partial(papers.main, __file__, table2_cifar10)

if __name__ == "__main__":
    main()
