"""Runs the table of :mod:`experiments.configs.powergossip.table_wikitext2`."""

from ..configs.powergossip import table_wikitext2
from ..lib import papers

main = papers.script(table_wikitext2)

if __name__ == "__main__":
    main()
