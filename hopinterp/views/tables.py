"""Each kind of evidence as a JSON object, as a table for the terminal, and as a line that reads it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from hopinterp.evidence.patching.effects import IN_PART, in_part
from hopinterp.evidence.reading.behaviour import SOLVED, capacity, error_table, mismatch, solved_by
from hopinterp.shown import legible
from hopinterp.theory.hypotheses import exact

if TYPE_CHECKING:
    import xarray as xr

    from hopinterp.models.store import Card


_STAYS = 0.95  # lower end of the answers that a transplant leaves, where it is said to have no effect
_BAR = f"the error's upper 95% end ≤ {100 * SOLVED:g}%"


def solved(errors: Mapping[str, Any]) -> str:
    """The k's of an error table, from the lowest measured on, as long as each is solved."""
    ks, fine = sorted(map(int, errors.get("errors", {}))), solved_by(errors)
    unbroken = list(itertools.takewhile(fine.__contains__, ks))
    if not unbroken:
        return f"not even k = {ks[0]}" if ks else "no k measured"
    return f"k = {ks[0]}" if len(unbroken) == 1 else f"k = {ks[0]} to {unbroken[-1]}"


def models_table(cards: Mapping[str, Card]) -> Table:
    """Sizes, task and capacity of model directories."""
    table = ruled_table("model", "depth", "width", "heads", "letters", "|Σ|", "max k", "solves", "made")
    for name, card in cards.items():
        spec, task = card.spec, card.task
        sizes = (spec.n_layers, spec.d_model, spec.n_heads, task.n_letters, task.alphabet_size, task.max_hops)
        table.add_row(
            *map(escape, (legible(name), *map(str, sizes), solved(card.errors), legible(str(card.made.get("how", "")))))
        )
    return table


def model_reading(place: object, card: Card) -> str:
    """Where a model was put, its sizes, and up to which k it answers."""
    sizes = f"{card.spec.n_layers} blocks, d_model {card.spec.d_model}, {card.spec.n_heads} heads"
    return f"{legible(str(place))}: {sizes}. Solves {solved(card.errors)} ({_BAR})."


def errors_json(found: xr.Dataset) -> dict[str, Any]:
    """What `evaluate` found, keyed by k: the table that a card keeps, and the capacity; with `distinct`, both for chains on
    which no letter repeats two hops apart."""
    table = error_table(found) | {"capacity": capacity(found)}
    if "distinct_error" in found:
        table["distinct"] = error_table(_on_distinct(found)) | {"capacity": capacity(found, distinct=True)}
        del table["distinct"]["settings"]
    return table


def _on_distinct(found: xr.Dataset) -> xr.Dataset:
    """What was found on chains on which no letter repeats two hops apart, by the names of what was found on all."""
    names = ("error", "low", "high", "solved", "positions")
    return found[[f"distinct_{name}" for name in names]].rename({f"distinct_{name}": name for name in names})


def errors_table(found: xr.Dataset) -> Table:
    """A row a k."""
    parts = [found, _on_distinct(found)] if "distinct_error" in found else [found]
    names = ("error %", "95% interval", "positions")
    table = ruled_table("k", *names, *(["without repeats %", *names[1:]] if len(parts) > 1 else []))
    for k in found.hops.values:
        table.add_row(str(k), *(cell for part in parts for cell in _error_cells(part.sel(hops=k))))
    return table


def _error_cells(row: xr.Dataset) -> tuple[str, str, str]:
    if not int(row.positions):
        return ("–", "–", "0")
    interval = f"{100 * float(row.low):.2f} – {100 * float(row.high):.2f}"
    return (f"{100 * float(row.error):.2f}", interval, str(int(row.positions)))


def errors_reading(found: xr.Dataset, name: str) -> str:
    """Up to which k the model answers."""
    dropout = found.attrs["dropout"]
    condition = f"with dropout {dropout:g}" if dropout else "in eval mode"
    said = " ".join(filter(None, (f"{name} solves {solved(error_table(found))} {condition} ({_BAR}).", mismatch(found))))
    if "distinct_error" not in found:
        return said
    worst = solved(error_table(_on_distinct(found)))
    return f"{said} On chains on which no letter repeats two hops apart, the theorem's worst case: {worst}."


def attention_json(one: xr.Dataset, hops: int) -> dict[str, Any]:
    """What `align` found at one k, as nested lists [layer][head][j]."""
    names = {"scores": "score", "scores_valid": "score_valid", "low": "low", "high": "high"}
    names |= {name: name for name in ("previous_token", "task_token", "self_token", "best_hop", "best_score")}
    names |= {"uniform": "uniform", "uniform_valid": "uniform_valid"}
    return {"hops": hops} | {key: one[name].values.tolist() for key, name in names.items()} | {"settings": dict(one.attrs)}


def attention_table(one: xr.Dataset) -> Table:
    """A row a head: the hop it agrees with best, and the three fixed patterns."""
    table = ruled_table("layer.head", "best j", "score", "95% interval", "non-null rows", "previous", "first", "self")
    for layer in one.layer.values:
        for head in one["head"].values:
            unit = one.sel(layer=layer, head=head)
            best = unit.sel(hop=unit.best_hop)
            interval = f"{float(best.low):.2f} – {float(best.high):.2f}"
            cells = (best.score_valid, unit.previous_token, unit.task_token, unit.self_token)
            score, others = f"{float(unit.best_score):.2f}", (f"{float(cell):.2f}" for cell in cells)
            table.add_row(f"{layer}.{head}", str(int(unit.best_hop)), score, interval, *others)
    return table


def attention_reading(one: xr.Dataset) -> str:
    """Each block's strongest alignment."""
    parts = []
    for layer in one.layer.values:
        unit = one.sel(layer=layer)
        head, previous = int(unit.best_score.argmax("head")), int(unit.previous_token.argmax("head"))
        if float(unit.previous_token[previous]) > float(unit.best_score[head]):
            parts.append(f"block {layer} the previous token ({float(unit.previous_token[previous]):.2f}, head {previous})")
        else:
            parts.append(f"block {layer} find^{int(unit.best_hop[head])} ({float(unit.best_score[head]):.2f}, head {head})")
    return "Strongest alignment: " + "; ".join(parts) + "."


def probe_json(found: xr.Dataset) -> dict[str, Any]:
    """What `probe` found, an object a block, accuracies keyed by hop, with what theory expects beside R(ℓ)."""
    hops = found.attrs["hops"]
    by_hop = ("accuracy", "low", "high", "baseline", "untrained", "control", "selectivity")
    layers = []
    for layer in found.layer.values.tolist():
        row = found.sel(layer=layer)
        values: dict[str, Any] = {name: {str(j): float(row[name].sel(hop=j)) for j in row.hop.values} for name in by_hop}
        held = [j for j in row.hop.values.tolist() if bool(row.held.sel(hop=j))]
        theory = {name: one.holds(layer, hops)[0] for name, one in exact().items()}
        ends = {"resolved": int(row.resolved), "frontier": int(row.frontier)}
        layers.append({"layer": layer, **values, "held": held, **ends, "theory": theory})
    explanations = {name: found[name].values.tolist() for name in ("majority", "lower_hops")}
    return {"hops": hops, "layers": layers, **explanations, "settings": dict(found.attrs)}


def probe_table(found: xr.Dataset) -> Table:
    """A row a block, a column a hop, held cells marked; last, the best cheaper explanation."""
    shown = [j for j in found.hop.values.tolist() if j <= max(found.attrs["hops"], 8)]
    table = ruled_table("block", *map(str, shown), "R", "frontier")
    for block in found.layer.values:
        row = found.sel(layer=block)
        cells = [(f"{float(row.accuracy.sel(hop=j)):.2f}", bool(row.held.sel(hop=j))) for j in shown]
        marked = (_marked(text, held) for text, held in cells)
        table.add_row(str(block), *marked, str(int(row.resolved)), str(int(row.frontier)))
    cheapest = found.baseline.max("layer")
    table.add_row("[dim]cheaper", *(f"[dim]{float(cheapest.sel(hop=j)):.2f} " for j in shown), "", "")
    return table


def probe_reading(found: xr.Dataset) -> str:
    """What the table shows, and R(ℓ) beside what each hypothesis expects."""
    hops, layers = found.attrs["hops"], found.layer.values.tolist()
    who = "Blocks resolve" if len(layers) > 1 else f"Block {layers[0]} resolves"
    seen = ", ".join(str(int(r)) for r in found.resolved)
    predicted = {name: [one.holds(layer, hops)[0] for layer in layers] for name, one in exact().items()}
    theory = "; ".join(f"{name} {', '.join(map(str, steps))}" for name, steps in predicted.items())
    key = f"Accuracy of the {found.attrs['target']} at find^j(i), j = 0, 1, …, read from a block's output at i. Cheaper: the"
    key += " best other explanation. *: held, the accuracy's lower bound closes 80% of the gap from there to 1."
    return f"{key}\n{who} {seen} of {hops} hops. Theory: {theory}."


def patch_json(found: xr.Dataset, metric: str) -> dict[str, Any]:
    """What `patch` found by one metric: `effect`, `low` and `high` as [layer][head, where there are heads][place …]."""
    one = found.sel(metric=metric)
    by = found.attrs["by"]
    names = ["effect", "low", "high", "normalised"]
    if by == "chain":
        names += ["matters", "pairs", "off_chain", "off_chain_low", "off_chain_high"]
    values = {name: one[name].values.tolist() for name in names}
    ends = {name: float(one[name]) for name in ("clean", "corrupt")}
    axes = ["chain" if by == "chain" and dim == "hop" else dim for dim in one.effect.dims]
    said = {"site": found.attrs["site"], "by": by, "metric": metric, "axes": axes}
    return said | values | ends | {"settings": dict(found.attrs)}


def patch_table(found: xr.Dataset, metric: str) -> Table:
    """A row a block or head: along the chain all effects, those that matter marked; else the largest few."""
    one = found.sel(metric=metric)
    rows = _units(one)
    if found.attrs["by"] != "chain":
        table = ruled_table("unit", "effect", "95% interval", "at", "next")
        for name, unit in rows:
            row = unit.expand_dims("position") if "position" not in unit.dims else unit
            order = abs(row.effect).fillna(-1).argsort()[::-1][:4].values
            best = row.isel(position=int(order[0]))
            others = "  ".join(f"{p}: {_decimals(row.effect[p])}" for p in order[1:])
            where = str(int(order[0])) if "position" in one.dims else "all"
            table.add_row(name, _decimals(best.effect), f"{_decimals(best.low)} – {_decimals(best.high)}", where, others)
        return table
    table = ruled_table("unit", "place", *(str(j) for j in one.hop.values), "off chain")
    for where in one["where"].values:
        for name, unit in rows:
            cells = unit.sel(where=where)
            marks = zip(cells.effect.values, cells.matters.values, in_part(cells).values, strict=True)
            marked = (_marked(_decimals(effect), matters, partly) for effect, matters, partly in marks)
            table.add_row(name, str(where), *marked, f"[dim]{_decimals(unit.off_chain)}" if where == "at" else "")
    return table


def _marked(text: str, matters: bool, partly: bool = False) -> str:
    return f"[bold green]{text}*[/]" if matters else f"{text}·" if partly else f"{text} "


def patch_reading(found: xr.Dataset, metric: str) -> str:
    """What was done, and where the answer's information was found."""
    one, settings = found.sel(metric=metric), found.attrs
    done = f"{settings['direction']}, {settings['sequences']} {settings['pairs']} pairs, k = {settings['hops']}"
    words = metric.replace("_", " ")
    key = f"Effect of patching {settings['site']} ({done}) on the answer's {words}: 0 no change, 1 the other run's answer."
    if bool(one.effect.isnull().all()):
        return f"{key}\nNothing to measure: the model's {words} does not tell the clean from the corrupt sequences."
    if settings["by"] != "chain":
        largest = np.unravel_index(np.nanargmax(abs(one.effect.values)), one.effect.shape)
        place = {dim: one[dim].values[n] for dim, n in zip(one.effect.dims, largest, strict=True)}
        named = ", ".join(f"{'block' if name == 'layer' else name} {value}" for name, value in place.items())
        return f"{key}\nLargest: {_decimals(one.effect.sel(place))} at {named}."
    key += f" Place j: at find^j(i), or before it. *: it matters, the interval lies above {settings['bar']:.2f}."
    key += f" In part, ·: {IN_PART:g} and more, and above a place off the chain."
    parts = [f"{name}: {_where_it_matters(unit)}" for name, unit in _units(one)]
    return f"{key}\nThe answer at i hangs on chain positions: {'; '.join(parts)}."


def _where_it_matters(unit: xr.Dataset) -> str:
    """Chain positions that matter; in brackets those that do in part."""
    partly = in_part(unit)

    def listed(marked: xr.DataArray) -> str:
        places = [(j, where) for where in ("at", "before") for j in marked.hop.values[marked.sel(where=where).values]]
        return ", ".join(f"{j}" if where == "at" else f"before {j}" for j, where in places)

    return (listed(unit.matters) or "none") + (f" (in part {listed(partly)})" if bool(partly.any()) else "")


def _decimals(effect: Any) -> str:
    """Two decimals, and no minus before a zero."""
    return f"{round(float(effect), 2) + 0.0:.2f}"


def _units(one: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
    """Blocks, or heads where there are some, by name."""
    layers = one.layer.values.tolist()
    if "head" not in one.dims:
        return [(f"block {layer}", one.sel(layer=layer)) for layer in layers]
    return [(f"{layer}.{head}", one.sel(layer=layer, head=head)) for layer in layers for head in one["head"].values.tolist()]


def transplant_json(found: xr.Dataset) -> dict[str, Any]:
    """What `transplant` found, an object a block (or head): IIA by family and r, chance, and what the block stands for."""
    layers = []
    for _, unit in _units(found):
        row: dict[str, Any] = {"layer": int(unit.layer)} | ({"head": int(unit["head"])} if "head" in unit.coords else {})
        for family in unit.family.values.tolist():
            row[family] = _by_hop(unit.iia.sel(family=family))
        for measure in ("chance", "untrained"):
            row[measure] = {family: _by_hop(unit[measure].sel(family=family)) for family in unit.family.values.tolist()}
        leading = {"hop": int(unit.leading), "family": str(unit.leading_family.values)}
        told = {measure: float(unit[measure]) for measure in ("share", "share_low", "contest", "family_contest")}
        row["leading"] = leading | told | {"share_high": float(share_interval(unit)[1])}
        best = int(unit.best)
        row |= {"best": best if best >= 0 else None, "family": str(unit.best_family.values)}
        interval = unit.sel(family=leading["family"], hop=leading["hop"])
        layers.append(row | {"low": float(interval.low), "high": float(interval.high)})
    positions = {family: _by_hop(found.positions.sel(family=family)) for family in found.family.values.tolist()}
    return {"hops": found.attrs["hops"], "layers": layers, "positions": positions, "settings": dict(found.attrs)}


def _by_hop(row: xr.DataArray) -> dict[str, float]:
    return {str(r): float(row.sel(hop=r)) for r in row.hop.values}


def transplant_table(found: xr.Dataset) -> Table:
    """A row a block (or head) and family: what it stands for, the share of the gap from chance to 1 that this closes, with
    the share's interval, and the IIA of each r, the best marked."""
    table = ruled_table("unit", "stands for", "share", "95% interval", "family", *map(str, found.hop.values))
    for name, unit in _units(found):
        ends = (name, _stands_for(unit), *(("–", "–") if _unmoved(unit) else _share(unit)))
        for number, family in enumerate(unit.family.values.tolist()):
            cells = [
                _marked(_digits(x), (family, r) == (unit.leading_family, unit.best))
                for r, x in zip(unit.hop.values, unit.iia.sel(family=family), strict=True)
            ]
            table.add_row(*(ends if not number else [""] * 4), family, *cells)
    return table


def _digits(share: xr.DataArray) -> str:
    return "–" if np.isnan(share) else _decimals(share)


def _share(unit: xr.Dataset) -> tuple[str, str]:
    """How much of the gap from chance to 1 the leading prediction closes, and from where to where."""
    low, high = share_interval(unit)
    return _digits(unit.share), f"{_digits(low)} – {_digits(high)}"


def share_interval(unit: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """The ends of the interval of a unit's `share`: those of the leading prediction's IIA, as shares of the gap."""
    lead = unit.sel(family=str(unit.leading_family.values), hop=int(unit.leading))
    bar = np.fmax(lead.chance, lead.untrained)
    return (lead.low - bar) / (1 - bar), (lead.high - bar) / (1 - bar)


def _unmoved(unit: xr.Dataset) -> bool:
    """Whether a transplant leaves the base's own answer, which is the pointer at r = 0, nearly everywhere."""
    return int(unit.best) < 0 and float(unit.low.sel(family="pointer", hop=0)) >= _STAYS


def _stands_for(unit: xr.Dataset) -> str:
    family = str(unit.best_family.values)
    if int(unit.best) >= 0:
        return f"{'r =' if family == 'undecided' else family} {int(unit.best)}"
    return "no effect" if _unmoved(unit) else "none"


def transplant_reading(found: xr.Dataset) -> str:
    """How to read the table, and what each block stands for."""
    hops, match = found.attrs["hops"], found.attrs["match"]
    pairs = f"{found.attrs['sequences']} pairs" + (f", matched in {match}" if match != "nothing" else "")
    pairs += ", next letters agree" if found.attrs["next_agrees"] else ""
    key = f'How often (IIA, {pairs}) the answer at i, once the output at i is another sequence\'s, is what "r hops done"'
    key += " predicts: carried was the position (pointer), letter and position (content), letter and occurrence number"
    key += f" (occurrence). It stands for what closes more than {100 * found.attrs['margin']:.0f}% of the gap from chance to"
    stand = bool((found.best >= 0).any())
    key += f" 1, and beats every other r{' (*)' if stand else ''}."
    key += " Share: how much of the gap the closest prediction closes."
    if any(_unmoved(unit) for _, unit in _units(found)):
        key += f" No effect: at least {100 * _STAYS:.0f}% of the answers stay what they were without it (pointer, r = 0)."
    parts = [
        f"{name} {_stands_for(unit)}" + (f" ({float(unit.share):.2f})" if int(unit.best) >= 0 else "")
        for name, unit in _units(found)
    ]
    brackets = " In brackets: how much of the gap." if stand else ""
    return f"{key}\nAt k = {hops}: {', '.join(parts)}.{brackets}"


def ruled_table(*columns: str) -> Table:
    """An empty table in the one style of the terminal views: columns of words on the left, numbers on the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        folds = column in ("model", "made")
        left = folds or column in ("", "family", "stands for", "verdict", "form", "holds at most")
        table.add_column(column, justify="left" if left else "right", no_wrap=not folds, overflow="fold")
    return table
