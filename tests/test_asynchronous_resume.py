"""What a run says of checkpoints that do not fit together."""

import pytest

from djax.asynchronous._run import resume_warnings


@pytest.mark.parametrize(
    ("counts", "budget", "says"),
    [
        ([1900, 237, 1880], 9000, ["worker 1 only 237"]),
        ([1900, 237, 1880], 4017, ["worker 1 only 237", "none is left to compute"]),
        ([1900, 1800], 3700, ["none is left to compute"]),
        ([1900, 1000], 9000, []),
        ([1900, 1000], None, []),
        ([0, 0], 10, []),
    ],
)
def test_stale_checkpoints_and_used_budgets_are_named(counts, budget, says):
    """Survivors of a lost worker have used up the budget that it had a share of."""
    texts = resume_warnings(counts, budget)
    assert len(texts) == len(says)
    for text, part in zip(texts, says, strict=True):
        assert part in text
