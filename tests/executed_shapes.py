"""An import hook under which a package's functions check the shapes and dtypes of the tensors they take and return.

Other types are left to the package's own checks, whose errors are to come first. jaxtyping's own hook, with beartype, checks
these too (CONTRIBUTING.md), but it wraps every function, which nearly doubles what small ones cost.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

_HOLDERS = (Union, types.UnionType, tuple, list, Sequence, Mapping, dict)
"""What may hold tensors that can be checked; an iterator would be used up."""


def install(package: str) -> None:
    """Let every module of a package that is imported from now on check its shapes."""
    assert package not in sys.modules, f"{package} was imported before its shapes could be checked"
    sys.meta_path.insert(sys.meta_path.index(PathFinder), _Finder(package))  # jaxtyping's own hook, where asked for, wins


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> ModuleSpec | None:
        if name.split(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        _check_all(module, module.__name__)


def _check_all(owner: Any, module: str) -> None:
    """Replace the functions and methods that a module or class defines, where shapes are annotated."""
    for name, value in list(vars(owner).items()):
        if getattr(value, "__module__", module) != module:
            continue
        if inspect.isclass(value):
            _check_all(value, module)
        elif inspect.isfunction(value):
            _replace(owner, name, value, checked(value))
        elif isinstance(value, classmethod | staticmethod):
            _replace(owner, name, value.__func__, checked(value.__func__), type(value))
        elif isinstance(value, property) and value.fget is not None:
            _replace(owner, name, value.fget, checked(value.fget), property)
        elif isinstance(value, functools.cached_property):
            value.func = checked(value.func)


def _replace(owner: Any, name: str, old: Any, new: Any, kind: Callable[[Any], Any] = lambda function: function) -> None:
    if new is not old:
        setattr(owner, name, kind(new))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that raises TypeCheckError where tensors do not fit what its signature says of them; itself if that says
    nothing. Sizes of one name are one size within a call."""
    hints = {name: hint for name, hint in _hints(function).items() if _has_shapes(hint)}
    if not hints:
        return function
    returned, parameters = hints.pop("return", None), list(inspect.signature(function).parameters.values())
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [(at if p.kind in by_place else sys.maxsize, p.name) for at, p in enumerate(parameters) if p.name in hints]
    fine: set[Any] = set()  # shapes that were checked before: most calls repeat them

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        given = {name: args[at] if at < len(args) else kwargs.get(name) for at, name in places}
        shapes = tuple(map(_shapes, given.values()))
        if shapes not in fine:
            with jaxtyped("context"):
                _check(function, given, hints)
            fine.add(shapes)
        made = function(*args, **kwargs)
        if returned is not None and (shapes, _shapes(made)) not in fine:
            with jaxtyped("context"):
                _check(function, {**given, "what it returns": made}, {**hints, "what it returns": returned})
            fine.add((shapes, _shapes(made)))
        return made

    return wrapper


def _check(function: Callable[..., Any], given: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    for name, hint in hints.items():
        if name in given and not _fits(given[name], hint):
            raise TypeCheckError(f"{function.__qualname__}: {name} is {_told(given[name])}, not {hint}")


def _shapes(value: Any) -> Any:
    """All that a check looks at."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_shapes, value))
    return tuple(map(_shapes, value.values())) if isinstance(value, Mapping) else None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by name, without those that need names which only type checkers import."""
    found = {}
    scope = inspect.unwrap(function).__globals__
    for name, annotation in getattr(function, "__annotations__", {}).items():
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            found |= get_type_hints(holder, scope)
        except NameError:
            continue
    return found


def _has_shapes(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return get_origin(hint) in _HOLDERS and any(map(_has_shapes, get_args(hint)))


def _fits(value: Any, hint: Any) -> bool:
    """Whether all tensors of a value have the shapes and dtypes of the hint; what is no tensor fits."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(value, torch.Tensor):
        kinds = inner if origin in (Union, types.UnionType) else (hint,)
        return any(kind is Any or (inspect.isclass(kind) and isinstance(value, kind)) for kind in kinds)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in inner)
    if isinstance(value, tuple) and origin is tuple and inner[-1] is not Ellipsis:
        return all(map(_fits, value, inner))
    if isinstance(value, Mapping) and origin in (dict, Mapping):
        return all(_fits(item, inner[1]) for item in value.values())
    if isinstance(value, list | tuple) and origin in (list, tuple, Sequence):
        return all(_fits(item, inner[0]) for item in value)
    return True


def _told(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
