"""Runs the table of :mod:`experiments.configs.relaysgd.table5_cifar10`."""

from ..configs.relaysgd import table5_cifar10
from ..lib import papers

main = papers.script(table5_cifar10)

if __name__ == "__main__":
    main()
