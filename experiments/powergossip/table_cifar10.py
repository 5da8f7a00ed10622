"""Runs the table of :mod:`experiments.configs.powergossip.table_cifar10`."""

from ..configs.powergossip import table_cifar10
from ..lib import papers

main = papers.script(table_cifar10)

if __name__ == "__main__":
    main()
