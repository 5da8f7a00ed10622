"""Loads the data sets, and decides which samples each worker uses in each step."""

from collections.abc import Callable

from ._base import Corpus as Corpus
from ._base import DataOptions as DataOptions
from ._base import Dataset as Dataset
from ._base import Source as Source
from ._images import cifar10, digits, fashion_mnist, imagenet2012
from ._images import crop_and_flip as crop_and_flip
from ._prefetch import Prefetch as Prefetch
from ._sampling import Sampler as Sampler
from ._sampling import TextSampler as TextSampler
from ._text import ag_news, sotu, wikitext2
from ._tfds import is_prepared as is_prepared
from ._tfds import prepare as prepare

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "imagenet2012": imagenet2012,
    "ag_news": ag_news,
}
CORPORA: dict[str, Callable[..., Corpus]] = {"wikitext2": wikitext2, "sotu": sotu}
