"""What every result carries: the model, the task, the version, the seed, and a long name for each variable."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import xarray as xr

from hopinterp.models.subject import Subject
from hopinterp.task import HopTask

LONG_NAMES: dict[str, str] = {}
"""What each variable of any result is, by its name."""


def described(found: xr.Dataset, subject: Subject, task: HopTask, *, seed: int, **settings: Any) -> xr.Dataset:
    """The result with its settings, its model and task, the version and the seed in attrs, and long names on its variables.

    Attrs are what netCDF can hold: numbers, text, and lists of numbers.
    """
    sizes = {"n_letters": task.n_letters, "alphabet_size": task.alphabet_size, "max_hops": task.max_hops}
    attrs = {"model": subject.name, **sizes, "version": metadata.version("hopinterp"), "seed": seed, **settings}
    found = found.assign_attrs({name: int(value) if isinstance(value, bool) else value for name, value in attrs.items()})
    for name, variable in found.variables.items():
        if str(name) in LONG_NAMES:
            variable.attrs["long_name"] = LONG_NAMES[str(name)]
    return found
