"""The command of :mod:`experiments.configs.powergossip.table_wikitext2`."""

import functools

from ..configs.powergossip import table_wikitext2
from ..lib import papers

main = functools.partial(papers.main, __file__, table_wikitext2)

if __name__ == "__main__":
    main()
