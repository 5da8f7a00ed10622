"""ImageNet and ResNet-50: accuracy on rings of 16, 32 and 64 workers, at rates 1 and 2.

Nabli, Belilovsky and Oyallon, A²CiD², 2023, https://arxiv.org/abs/2306.08289.

The protocol is that of :mod:`experiments.configs.acid.table_cifar10`, except that the
learning rate decays after 30, 60 and 80 % of the training, as in the published program.
The published program does not contain the number of epochs and the weight decay for
ImageNet. The 90 epochs of all workers together and 5e-5 are from memory of the paper.

On the ring of 64, expect A²CiD² at rate 1 at or above its baseline at rate 2. On the
ring of 16, expect all methods close to AR-SGD.
"""

from ...lib.tables import Choice, Table
from .table_cifar10 import COMMON, make_rows

TABLE = Table(
    "ImageNet, test accuracy of the averaged model in %",
    prepare="imagenet2012 --raw-dir TARS",
    example=Choice("A²CiD², rate 1", "ring of 64", more=("--precision", "bfloat16")),
    hours=12,
    smoke={
        "task_options": {"size": 32},
        "model_options": {"width": 0.125, "stem": "imagenet", "blocks": (1,)},
    },
    score="averaged",
    rows=tuple(
        make_rows(
            COMMON.replace(
                task="imagenet2012",
                model="resnet50",
                model_options={"stem": "imagenet"},
                epochs=90,
                warmup=5 / 90,
                decay_at=(0.3, 0.6, 0.8),
                weight_decay=5e-5,
                evaluations=30,
            ),
            sizes=(16, 32, 64),
            graphs=("ring",),
            seeds=(1,),
        )
    ),
)
