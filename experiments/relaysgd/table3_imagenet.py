"""Runs the table of :mod:`experiments.configs.relaysgd.table3_imagenet`."""

from ..configs.relaysgd import table3_imagenet
from ..lib import papers

main = papers.script(table3_imagenet)

if __name__ == "__main__":
    main()
