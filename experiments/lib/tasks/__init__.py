"""Makes learning problems, each with its data, model, loss and score."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .. import data, models
from ..errors import UsageError, lookup
from ..options import check_options, check_ranges
from ..ranges import AT_LEAST_ONE, NOT_NEGATIVE, Range, flag
from ._base import Setting as Setting
from ._base import Task as Task
from ._classification import classification as classification
from ._language import language as language
from ._quadratics import quadratics as quadratics


class _Default(NamedTuple):
    """What a task uses unless the command line says otherwise.

    Attributes:
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
    """Makes the task of classifying handwritten digits with a small MLP."""
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
    make = _make_language if name in CORPORA else _make_classification
    return make(name, setting, options)


def _make_quadratics(setting, options):
    for name in ("model", "model_options", "precision", "accumulation"):
        if getattr(setting, name) != Setting._field_defaults[name]:
            raise UsageError(f"--task quadratics has no option {flag(name)}.")
    what = "--task-options of quadratics"
    values = check_options(what, quadratics, options)
    check_ranges(what, values, _QUADRATICS)
    return _call("--task quadratics", values, quadratics, setting)


def _make_classification(name, setting, options):
    default = (_IMAGES | _TEXTS)[name]
    dataset = _load(name, data.DATASETS[name], setting, options)
    model_name, model_options = setting.model or default.model, setting.model_options
    weights = None
    if name in _IMAGES:
        known, given = models.IMAGE_MODELS, (dataset.classes,)
        side = dataset.train.read(np.zeros(1, int), (0,))["image"].shape[1]
        whole = "layers" not in model_options
        if model_name == "vgg11" and whole and side < 32:  # No pixel would be left.
            raise UsageError(
                "--model vgg11 halves images five times and needs 32 pixels a side, "
                f"but those of --task {name} have {side}; choose another --model, such "
                "as resnet8, or mlp."
            )
    else:
        known, given = models.TEXT_MODELS, (dataset.vocabulary, dataset.classes)
        model_options = dict(model_options)
        weights = model_options.pop("weights", None)
    setting = setting._replace(model_options=model_options)
    return classification(
        setting,
        dataset,
        _make_model(known, default, setting, *given),
        epochs=default.epochs,
        convolutions=name in _IMAGES and model_name != "mlp",
        load=weights and functools.partial(models.load_distilbert, path=weights),
    )


def _make_language(name, setting, options):
    default, options = CORPORA[name], dict(options)
    length = options.pop("length", default.length)
    if not (isinstance(length, int) and length > 0):
        raise UsageError(
            f"--task-options of {name}: length={length} must be a positive integer."
        )
    corpus = _load(name, data.CORPORA[name], setting, options)
    known, size = models.LANGUAGE_MODELS, len(corpus.vocabulary)
    model = _make_model(known, default, setting, size)
    return language(setting, corpus, model, length, epochs=default.epochs)


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


def _call(what, options, make, *given):
    try:
        return make(*given, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} with options {options}: {error}") from error
