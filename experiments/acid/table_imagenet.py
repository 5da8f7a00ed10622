"""Runs the table of :mod:`experiments.configs.acid.table_imagenet`."""

from ..configs.acid import table_imagenet
from ..lib import papers

main = papers.script(table_imagenet)

if __name__ == "__main__":
    main()
