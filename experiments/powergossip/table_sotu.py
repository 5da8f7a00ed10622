"""Runs and draws :mod:`experiments.configs.powergossip.table_sotu`."""

from ..configs.powergossip import table_sotu
from ..lib import study
from . import tradeoff

main = study.script(__file__, table_sotu, tradeoff.draw)

if __name__ == "__main__":
    main()
