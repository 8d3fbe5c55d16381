"""What was measured is looked up in a cache where the caller asks for that, and measured where it is not there.

A result is found again by all that it depends on: the model's weights, the task, every setting, the package's code below
judgement, the versions of the libraries and how this machine computes. A model that carries hooks, or is known by its
answers alone, is measured each time.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import operator
import platform
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, overload

import numpy as np
import safetensors.numpy
import torch
import xarray as xr
from safetensors import SafetensorError

from hopinterp import cache
from hopinterp.cache import Cache, Key
from hopinterp.files import digest
from hopinterp.models.subject import Subject
from hopinterp.progress import Progress
from hopinterp.task import HopTask

P = ParamSpec("P")
T = TypeVar("T")
Arrays = Mapping[str, np.ndarray]

_PACKAGE = Path(cache.__file__).parent
_ABOVE = ("training", "judgement", "sweeps", "views", "cli")  # rooms on which no evidence depends
_LIBRARIES = ("hopinterp", "torch", "transformer-lens", "numpy", "scipy", "scikit-learn", "networkx", "xarray")
_active: ContextVar[Cache | None] = ContextVar("hopinterp.cache", default=None)


@contextmanager
def cached(directory: str | Path | None = None, *, warn: Callable[[str], None] | None = None) -> Iterator[Cache | None]:
    """Inside, what measures a model is looked up in the cache first, and kept there once it has been measured.

    It serves `evaluate`, `align`, `probe`, `patch`, `transplant`, `decompile`, `measure_transplants`, and so `verify` and
    `verify_all`. Without it every one of them computes. What is served is what would be computed, to the last bit; what
    you changed in a running process by hand (a constant of a module, a function) is not seen, so do not ask for it then.

    Args:
        directory: of the cache; by default what HOPINTERP_CACHE names, else the platform's directory for caches.
        warn: told in one line, once, that results cannot be kept; Python's warnings by default.

    Yields:
        The cache, whose `found` has the keys of what was served; None where HOPINTERP_CACHE is off.
    """
    where = cache.place() if directory is None else Path(directory).absolute()
    with _using(None if where is None else Cache(where, warn or _warn)) as used:
        yield used


def _warn(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=2)


@contextmanager
def _using(used: Cache | None) -> Iterator[Cache | None]:
    before = _active.set(used)
    try:
        yield used
    finally:
        _active.reset(before)


@dataclass(frozen=True)
class Codec(Generic[T]):
    """How results of one kind are kept.

    Attributes:
        pack: a result as JSON's own values and arrays. Raises TypeError or ValueError where that cannot be.
        unpack: the same result again. May raise anything where it is given something else.
        same: whether two results are the same to the last bit and type; what does not come back so is not kept.
    """

    pack: Callable[[T], tuple[Any, Arrays]]
    unpack: Callable[[Any, Arrays], T]
    same: Callable[[T, T], bool] = lambda one, other: bool(one == other)


def recall(
    what: str, subject: Subject, task: HopTask, settings: Mapping[str, Any], codec: Codec[T], compute: Callable[[], T]
) -> T:
    """What is kept of these settings, or else what `compute` gives, which is kept then. Outside `cached`: what it gives.

    Args:
        what: is measured: a function's name.
        settings: all that the result depends on beside model and task, as numbers, words, truths and lists of these; of
            anything else nothing is kept.
    """
    used = _active.get()
    key = None if used is None else _key(what, subject, task, settings)
    if used is None or key is None:
        return compute()
    try:
        kept = used.read(key)
        if kept is not None:
            record, payload = kept
            found = codec.unpack(record, {name: array.copy() for name, array in safetensors.numpy.load(payload).items()})
            used.served(key)
            return found
    except Exception:  # it was written by another hand: what is damaged fails in many ways
        pass
    with _using(None):  # a result is computed of itself, whatever parts of it are kept
        found = compute()
    _keep(used, key, codec, found)
    return found


def _keep(used: Cache, key: Key, codec: Codec[T], found: T) -> None:
    try:
        record, arrays = codec.pack(found)
        record = json.loads(json.dumps(record, allow_nan=False))
        payload = safetensors.numpy.save({name: np.array(array, order="C") for name, array in arrays.items()})
        again = codec.unpack(record, safetensors.numpy.load(payload))
    except (TypeError, ValueError, KeyError, SafetensorError):  # a kind of result that cannot be kept
        return
    if codec.same(found, again):
        used.keep(key, record, payload)


@overload
def remembered(function: Callable[P, xr.Dataset], /) -> Callable[P, xr.Dataset]: ...
@overload
def remembered(*, fills: Callable[..., Any]) -> Callable[[Callable[P, xr.Dataset]], Callable[P, xr.Dataset]]: ...
def remembered(function: Callable[..., xr.Dataset] | None = None, *, fills: Callable[..., Any] | None = None) -> Any:
    """Let a function of evidence, (model, task, …) → Dataset, be looked up inside `cached`.

    Args:
        fills: whose defaults hold for keywords that the function passes on (`**settings`).
    """
    if function is None:
        return functools.partial(remembered, fills=fills)
    measures, signature = function, inspect.signature(function)
    passed_on = [name for name, one in signature.parameters.items() if one.kind is one.VAR_KEYWORD]
    defaults = {} if fills is None else {
        name: one.default for name, one in inspect.signature(fills).parameters.items() if one.kind is one.KEYWORD_ONLY
    }  # fmt: skip

    @functools.wraps(measures)
    def call(*args: Any, **keywords: Any) -> xr.Dataset:
        if _active.get() is None:
            return measures(*args, **keywords)
        bound = signature.bind(*args, **keywords)
        bound.apply_defaults()
        settings = dict(bound.arguments)
        subject, task = Subject.asked(settings.pop("model"), settings.pop("task")), bound.arguments["task"]
        report = settings.pop("report", None)
        for name in passed_on:
            given = settings.pop(name)
            settings |= defaults | given
        bound.arguments["model"] = subject
        computed = False

        def compute() -> xr.Dataset:
            nonlocal computed
            computed = True
            return measures(*bound.args, **bound.kwargs)

        found = recall(measures.__name__, subject, task, settings, DATASETS, compute)
        if report is not None and not computed:
            report(Progress("found in the cache", 1, 1))
        return found

    return call


# -- what a result depends on -----------------------------------------------------------------------------------------


class _Unkept(Exception):
    """Something on which a result depends cannot be put into a key."""


def _key(what: str, subject: Subject, task: HopTask, settings: Mapping[str, Any]) -> Key | None:
    """All that a result depends on; None where it cannot be told."""
    if not _LOADED or _source() != _LOADED:  # edited since it was loaded: what runs is no longer what is there
        return None
    if subject.weights is None or not _as_it_comes(subject.model):
        return None
    try:
        plainly = {name: _plain(value) for name, value in settings.items()}
    except _Unkept:
        return None
    return {
        "what": what,
        "model": subject.name,
        "weights": subject.weights.digest(),
        "runs_as": [type(subject.model).__qualname__, bool(getattr(subject.model, "training", False))],
        "task": asdict(task),
        "settings": plainly,
        "code": _LOADED,
        "versions": _versions(),
        "machine": _machine(subject.device),
    }


def _as_it_comes(model: Any) -> bool:
    """Whether what runs is of a class whose code is in the key: hopinterp's own, or TransformerLens's."""
    return type(model).__module__.startswith(("hopinterp.models.", "transformer_lens."))


def _plain(value: Any) -> Any:
    """A setting as JSON has it. Raises _Unkept where it is no number, word, truth or list of these."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, float | np.floating) and math.isfinite(value):
        return float(value)
    try:
        if not isinstance(value, torch.Tensor | np.ndarray | np.bool_):
            return operator.index(value)
    except TypeError:
        pass
    raise _Unkept


def _source() -> str:
    """A digest of every file of the package on which evidence depends; empty where these cannot be read."""
    try:
        paths = sorted(path for path in _PACKAGE.rglob("*.py") if path.relative_to(_PACKAGE).parts[0] not in _ABOVE)
        listed = [f"{path.relative_to(_PACKAGE)} {digest(path.read_bytes())}" for path in paths]
    except OSError:
        return ""
    return digest("\n".join(listed).encode()) if listed else ""


_LOADED = _source()
"""The same as it was when this was loaded."""


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _machine(device: torch.device) -> dict[str, Any]:
    """How this process computes: probes differ by up to 0.004 between one thread and two."""
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": on,
        "processor": f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "precision": [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, str(torch.get_default_dtype())],
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", device.type)],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


# -- datasets ---------------------------------------------------------------------------------------------------------


def _pack(found: xr.Dataset) -> tuple[Any, Arrays]:
    """A Dataset of numbers, truths and words. Raises TypeError for another."""
    arrays: dict[str, np.ndarray] = {}
    variables: dict[str, Any] = {}
    for name, one in found.variables.items():
        kept = variables[str(name)] = {"dims": list(one.dims), "attrs": one.attrs, "coordinate": name in found.coords}
        if one.dtype.kind in "UO":
            if not all(type(word) in (str, np.str_) for word in one.values.flat):
                raise TypeError(f"{name} holds neither numbers nor words")
            kept |= {"words": one.values.astype(object).ravel().tolist(), "shape": one.shape, "type": one.dtype.str}
        else:
            arrays[str(name)] = one.values
    return {"attrs": found.attrs, "variables": variables}, arrays


def _unpack(record: Any, arrays: Arrays) -> xr.Dataset:
    """What `_pack` made of a Dataset. Raises many things where it is given something else."""
    made: dict[str, xr.Variable] = {}
    for name, kept in record["variables"].items():
        if "words" in kept:
            words = [_word(word) for word in kept["words"]]
            values = np.array(words, dtype=object).reshape(kept["shape"])
            if kept["type"] != "|O":
                values = values.astype(np.dtype(f"U{re.fullmatch('.U([0-9]{1,3})', kept['type'])[1]}"))  # type: ignore[index]
        else:
            values = arrays[name]
        made[name] = xr.Variable(kept["dims"], values, dict(kept["attrs"]))
    coordinates = [name for name, kept in record["variables"].items() if kept["coordinate"]]
    return xr.Dataset(made, attrs=dict(record["attrs"])).set_coords(coordinates)  # in this order, which tables show


def _word(given: Any) -> str:
    if not isinstance(given, str):
        raise TypeError("no word")
    return given


def _same(one: xr.Dataset, other: xr.Dataset) -> bool:
    def shape(found: xr.Dataset) -> list[Any]:
        types = [(name, v.dims, v.dtype, repr(v.attrs)) for name, v in found.variables.items()]
        return [repr(found.attrs), list(found.sizes), list(found.data_vars), list(found.coords), types]

    return one.identical(other) and shape(one) == shape(other)


DATASETS = Codec(_pack, _unpack, _same)
"""What functions of evidence return."""
