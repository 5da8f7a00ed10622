"""The command of :mod:`experiments.configs.powergossip.table_sotu`."""

import functools

from ..configs.powergossip import table_sotu
from ..lib import study
from . import tradeoff

draw = functools.partial(tradeoff.draw, "mean held-out perplexity of workers")
main = functools.partial(study.main, __file__, table_sotu, draw)

if __name__ == "__main__":
    main()
