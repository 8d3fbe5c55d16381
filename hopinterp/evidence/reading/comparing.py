"""How the errors of several models differ: err_k side by side, and each difference with an interval."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from hopinterp.errors import HopInterpError
from hopinterp.evidence.datasets import LONG_NAMES

_VALUES = ("error", "low", "high", "solved", "positions")
_SETTINGS = ("sequences", "distinct", "dropout", "level", "seed", "solved", "failed")
_TASK = ("n_letters", "alphabet_size")


def compare(found: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """What `evaluate` found of several models, side by side: err_k, and how much each model's is above the first one's.

    The interval of a difference is Newcombe's of two independent shares (MOVER: the distances from each share to the ends of
    its own interval, squared and added). Models of one task answered the same sequences, so that it is rather too wide.

    Args:
        found: by name, what `evaluate` returned with one and the same seed and settings; the first is what others are
            compared with.

    Returns:
        Dims model, hops (every k that all have). `error`, `low`, `high`, `solved`, `positions` as `evaluate` has them;
        `difference`: err_k less the first model's, with its 95% interval `difference_low`, `difference_high`; `differs`:
        whether that leaves 0 out. The attribute `same_task` says whether all read as many letters of one alphabet.

    Raises:
        HopInterpError: fewer than two models, no k that all have, or other settings of one than of another.
    """
    names = list(found)
    if len(names) < 2:
        raise HopInterpError("there is nothing to compare: fewer than two models were given")
    first = found[names[0]]
    for name in names[1:]:
        if odd := [one for one in _SETTINGS if found[name].attrs.get(one) != first.attrs.get(one)]:
            given = f"{found[name].attrs.get(odd[0])} and {first.attrs.get(odd[0])}"
            raise HopInterpError(f"{name} and {names[0]} were measured with another {odd[0]}: {given}")
    parts = xr.align(*(one[list(_VALUES)] for one in found.values()), join="inner")
    if not parts[0].sizes["hops"]:
        raise HopInterpError("there is no k at which all models were measured")
    # the settings are the first one's, and so checked
    together = xr.concat([part.drop_attrs() for part in parts], dim=xr.Variable("model", names))
    base = together.isel(model=0)
    down, up = together.error - together.low, together.high - together.error
    below, above = base.error - base.low, base.high - base.error
    together["difference"] = together.error - base.error
    together["difference_low"] = together.difference - np.hypot(down, above)
    together["difference_high"] = together.difference + np.hypot(up, below)
    together["differs"] = (together.difference_low > 0) | (together.difference_high < 0)
    together["differs"][0] = False
    for name in ("difference", "difference_low", "difference_high"):
        together[name][0] = 0.0
    for variable in together.variables:
        together[variable].attrs["long_name"] = LONG_NAMES[str(variable)]
    same = all(one.attrs.get(size) == first.attrs.get(size) for one in found.values() for size in _TASK)
    kept = {name: first.attrs[name] for name in (*_SETTINGS, "version") if name in first.attrs}
    return together.assign_attrs(kept | {"compared_with": names[0], "same_task": int(same)})
