"""The command of :mod:`experiments.configs.acid.table_imagenet`."""

import functools

from ..configs.acid import table_imagenet
from ..lib import papers

main = functools.partial(papers.main, __file__, table_imagenet)

if __name__ == "__main__":
    main()
