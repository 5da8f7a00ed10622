"""Runs the table of :mod:`experiments.configs.acid.table_cifar10`."""

from ..configs.acid import table_cifar10
from ..lib import papers

main = papers.script(table_cifar10)

if __name__ == "__main__":
    main()
