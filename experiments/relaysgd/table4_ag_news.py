"""Runs the table of :mod:`experiments.configs.relaysgd.table4_ag_news`."""

from ..configs.relaysgd import table4_ag_news
from ..lib import papers

main = papers.script(table4_ag_news)

if __name__ == "__main__":
    main()
