"""Makes learning problems, each with its data, model, loss and score."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .. import data, models
from ..errors import UsageError, lookup
from ..options import check_options, check_ranges
from ..ranges import AT_LEAST_ONE, NOT_NEGATIVE, Range
from ._base import Setting as Setting
from ._base import Task as Task
from ._classification import classification as classification
from ._language import language as language
from ._quadratics import quadratics as quadratics


class _Default(NamedTuple):
    """What a task uses unless the command line says otherwise.

    Attributes:
      options: arguments of the model.
      length: for texts, number of tokens that a step reads from each row.
    """

    model: str
    options: dict[str, Any] = {}
    epochs: int = 40
    length: int = 30


_IMAGES = {
    "digits": _Default("mlp"),
    "fashion_mnist": _Default("mlp", {"hidden": (256,)}, epochs=20),
    "cifar10": _Default("vgg11", epochs=200),
    "imagenet2012": _Default("resnet18_evonorm", epochs=90),
}
_TEXTS = {"ag_news": _Default("distilbert", epochs=10)}
CORPORA = {
    "wikitext2": _Default("lstm", epochs=90),
    "sotu": _Default("lstm", {"layers": 1, "hidden": 128, "dropout": 0.0}, epochs=3),
}
"""Texts whose next word or character is predicted."""
TASKS = ("quadratics", *_IMAGES, *_TEXTS, *CORPORA)
_QUADRATICS = {
    **dict.fromkeys(("dim", "steps_per_epoch"), AT_LEAST_ONE),
    **dict.fromkeys(("heterogeneity", "noise", "distance"), NOT_NEGATIVE),
    "smallest": Range(0, 1, open_below=True),
}
"""Allowed values of the options of quadratics."""
PRECISIONS = ("float32", "bfloat16")


def digits(setting: Setting, hidden: Sequence[int] = (128,)) -> Task:
    """Makes the task of classifying handwritten digits with a small MLP.

    There are 1,797 images of 8 x 8 in ten classes. A fifth of each class is held out
    for the evaluation.
    """
    options = {"hidden": tuple(hidden)}
    return make_task("digits", setting._replace(model_options=options), {})


def make_task(name: str, setting: Setting, options: Mapping[str, Any]) -> Task:
    """Makes a task by its name on the command line."""
    lookup("--task", name, TASKS)
    lookup("--precision", setting.precision, PRECISIONS)
    if setting.accumulation < 1 or setting.batch_size % setting.accumulation:
        raise UsageError(
            f"--accumulation {setting.accumulation} must divide --batch-size "
            f"{setting.batch_size}."
        )
    if name == "quadratics":
        return _make_quadratics(setting, options)
    if name in CORPORA:
        return _make_language(name, setting, options)
    return _make_classification(name, setting, options)


def _make_quadratics(setting, options):
    for flag, value, default in (
        ("--model", setting.model, None),
        ("--model-options", setting.model_options, {}),
        ("--precision", setting.precision, "float32"),
        ("--accumulation", setting.accumulation, 1),
    ):
        if value != default:
            raise UsageError(f"--task quadratics has no option {flag}.")
    what = "--task-options of quadratics"
    values = check_options(what, quadratics, options)
    check_ranges(what, values, _QUADRATICS)
    return _call("--task quadratics", values, quadratics, setting)


def _make_classification(name, setting, options):
    default = (_IMAGES | _TEXTS)[name]
    known = models.IMAGE_MODELS if name in _IMAGES else models.TEXT_MODELS
    dataset = _load(name, data.DATASETS[name], setting, options)
    given = (dataset.vocabulary,) if name in _TEXTS else ()
    options = dict(setting.model_options)
    weights = options.pop("weights", None) if name in _TEXTS else None
    setting = setting._replace(model_options=options)
    if name in _IMAGES:
        first = dataset.train.read(np.zeros(1, int), (0,))
        side = first["image"].shape[1]
        _check_size(name, setting.model or default.model, side)
    model = _make_model(known, default, setting, *given, dataset.classes)
    return classification(
        setting,
        dataset,
        model,
        epochs=default.epochs,
        convolutions=name in _IMAGES and (setting.model or default.model) != "mlp",
        load=weights and functools.partial(models.load_distilbert, path=weights),
    )


def _make_language(name, setting, options):
    default = CORPORA[name]
    options = dict(options)
    what = f"--task-options of {name}"
    length = _positive(what, "length", options.pop("length", default.length))
    corpus = _load(name, data.CORPORA[name], setting, options)
    model = _make_model(
        models.LANGUAGE_MODELS, default, setting, len(corpus.vocabulary)
    )
    return language(setting, corpus, model, length, epochs=default.epochs)


def _positive(what, name, value):
    if not (isinstance(value, int) and value > 0):
        raise UsageError(f"{what}: {name}={value} must be a positive integer.")
    return value


def _load(name, load, setting, options):
    values = check_options(f"--task-options of {name}", load, options)
    return _call(f"--task {name}", values, load, setting.data)


def _make_model(known: Mapping[str, Callable], default: _Default, setting, *given):
    """Makes the model that the setting names, or the default model of the task."""
    name = lookup("--model", setting.model or default.model, known)
    options = dict(default.options) if name == default.model else {}
    what = f"--model-options of {name}"
    options |= check_options(what, known[name], setting.model_options, given=len(given))
    options["dtype"] = jnp.dtype(setting.precision)
    return _call(f"--model {name}", options, known[name], *given)


def _check_size(task: str, model: str, side: int) -> None:
    """Refuses images so small that the model's poolings would leave no pixel."""
    if model == "vgg11" and side < 32:
        raise UsageError(
            f"--model vgg11 halves images five times and needs 32 pixels a side, but "
            f"those of --task {task} have {side}; choose another --model, such as "
            "resnet8, or mlp."
        )


def _call(what, options, make, *given):
    try:
        return make(*given, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} with options {options}: {error}") from error
