"""The command of :mod:`experiments.configs.acid.table_cifar10`."""

import functools

from ..configs.acid import table_cifar10
from ..lib import papers

main = functools.partial(papers.main, __file__, table_cifar10)

if __name__ == "__main__":
    main()
