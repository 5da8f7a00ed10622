"""The command of :mod:`experiments.configs.relaysgd.table4_ag_news`."""

import functools

from ..configs.relaysgd import table4_ag_news
from ..lib import papers

main = functools.partial(papers.main, __file__, table4_ag_news)

if __name__ == "__main__":
    main()
