"""Table 4: AG News, where 16 workers fine-tune DistilBERT with Adam at alpha 0.1.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175.

The score is the mean test accuracy of the workers at the last of 10 evaluations. The
paper's accuracies have the standard deviation of 3 seeds beside them. Texts have at
most 200 tokens. The paper's code contains neither the number of workers, nor epochs,
batch sizes or learning rates. Our choices are 16 workers with batches of 32 texts, 10
epochs, and the learning rates below; `--tune` tries the grids. `model.safetensors` and
`vocab.txt` are those of distilbert-base-uncased.

Expect Relay-Adam above D-PSGD with Adam and above quasi-global Adam, and near Adam with
all-reduce.
"""

from ...lib.config import Config
from ...lib.tables import Choice, Row, Table
from .table2_cifar10 import ALL_REDUCE, CHAIN, DPSGD

COMMON = (
    Config(task="ag_news", model="distilbert", split="dirichlet:0.1", workers=16)
    .replace(batch_size=32, epochs=10, evaluations=10)
    .replace(optimizer="adam", learning_rate=1e-5, warmup=0.1, decay_at=())
)
LINES = {
    "Adam, all-reduce": (ALL_REDUCE, "94.2 ± 0.1"),
    "Relay-Adam, chain": (CHAIN, "93.2 ± 0.1 (93.11 93.15 93.35)"),
    "D-PSGD Adam, ring": (DPSGD, "87.3 ± 0.6 (87.84 87.40 86.64)"),
    "quasi-global Adam, ring": (
        {"algorithm": "quasi_global_adam", "topology": "ring"},
        "88.3 ± 0.7 (89.04 88.24 87.71)",
    ),
}
"""The options of each method, and the paper's accuracy."""

TABLE = Table(
    "Table 4: AG News, mean test accuracy of the workers in %",
    prepare="ag_news --download",
    example=Choice(
        "Relay-Adam, chain",
        more=(
            *("--model-options", "weights", "model.safetensors"),
            *("--task-options", "vocabulary_file", "vocab.txt"),
        ),
    ),
    smoke={
        "task_options": {"length": 32},
        "model_options": {"width": 0.125, "layers": 1},
    },
    score="mean",
    rows=tuple(
        Row(
            method,
            COMMON.replace(**options),
            expected=expected,
            tried=(1e-6, 5e-6, 1e-5, 5e-5),
        )
        for method, (options, expected) in LINES.items()
    ),
)
