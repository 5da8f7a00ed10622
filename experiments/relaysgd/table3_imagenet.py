"""The command of :mod:`experiments.configs.relaysgd.table3_imagenet`."""

import functools

from ..configs.relaysgd import table3_imagenet
from ..lib import papers

main = functools.partial(papers.main, __file__, table3_imagenet)

if __name__ == "__main__":
    main()
