"""The town crier: verdicts as JSON, as a terminal table, and in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hopinterp.theory.hypotheses import HYPOTHESES, Hypothesis
from hopinterp.views.tables import ruled_table

if TYPE_CHECKING:
    from rich.table import Table

    from hopinterp.judgement.verdict import Survey, Verdict


def verdict_json(found: Verdict) -> dict[str, Any]:
    """A verdict without its datasets."""
    names = ("verdict", "form", "hops", "error", "resolved", "attended", "theory", "growth", "controls", "agreement")
    values = {name: getattr(found, name) for name in (*names, "capacity")}
    layers = range(len(found.attended))
    looks = {name: [sorted(Hypothesis(name).attends(layer, found.hops)) for layer in layers] for name in HYPOTHESES}
    values["theory_attended"] = looks
    return values | {"reasons": list(found.reasons), "settings": dict(found.settings)}


def survey_json(found: Survey) -> dict[str, Any]:
    """The verdict at every k, and the capacity."""
    verdicts = {str(k): verdict_json(one) for k, one in found.verdicts.items()}
    unmeasured = {str(k): why for k, why in found.unmeasured.items()}
    return {"verdicts": verdicts, "unmeasured": unmeasured, "capacity": dict(found.capacity)}


def headline(found: Verdict, name: str) -> str:
    """The answer in one line: verdict, form, what the blocks resolve, and what theory says they should."""
    form = f" ({found.form})" if found.form else ""
    start = f"{name}, k = {found.hops}: {found.verdict}{form}."
    if found.verdict == "none":
        return f"{start} Its error is {100 * found.error['error']:.1f}%."
    seen = f"Blocks resolve {hops_text(found.resolved['transplant'])} hops"
    if found.verdict == "sequential" or found.form:
        return f"{start} {seen}; theory {hops_text(found.theory[found.form or 'sequential'])}."
    ranges = [Hypothesis("doubling").holds(layer, found.hops) for layer in range(len(found.attended))]
    doubling = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in ranges)
    return f"{start} {seen}; theory: doubling {doubling}; sequential {hops_text(found.theory['sequential'])}."


def hops_text(values: Sequence[int | None]) -> str:
    """R(ℓ) block by block; "?" where the evidence does not single one out."""
    return ", ".join("?" if r is None else str(r) for r in values)


def verdict_table(found: Verdict) -> Table:
    """A column a block: R(ℓ) by each kind of evidence, what heads attend to, and each hypothesis."""
    table = ruled_table("", *(f"block {layer}" for layer in range(len(found.attended))))
    for label, cells in table_rows(found):
        table.add_row(label, *cells, style="dim" if label.startswith("theory") else "")
    return table


def table_rows(found: Verdict) -> list[tuple[str, list[str]]]:
    """The rows that every view of a verdict shows: a label, then a cell a block."""
    cone = ["?" if pair is None else "–".join(map(str, sorted(set(pair)))) for pair in found.resolved["light_cone"]]
    rows = [
        ("stands for (transplants)", ["?" if r is None else str(r) for r in found.resolved["transplant"]]),
        ("holds at most (probes)", [str(r) for r in found.resolved["probe"]]),
        ("still to go from (light cone)", cone),
        ("attends to find^j, j =", [" ".join(map(str, js)) or "–" for js in found.attended]),
    ]
    return rows + [(f"theory: {name}", [str(r) for r in found.theory[name]]) for name in HYPOTHESES]


def verdict_reading(found: Verdict, name: str) -> str:
    """The reasons, the capacity, the controls, and last the headline."""
    passed = [result["passed"] for result in found.controls.values()]
    failed = [control for control, result in found.controls.items() if result["passed"] is False]
    measured = (
        f"All {len(passed)} controls passed." if all(passed) else f"{passed.count(True)} controls passed; none failed."
    )
    controls = f"Controls failed: {', '.join(failed)}." if failed else measured
    parts = [*found.reasons, capacity_text(found.capacity), growth_text(found), controls]
    return "\n".join([*filter(None, parts), headline(found, name)])


def capacity_text(capacity: Mapping[str, int | None]) -> str:
    """How far the model gets beside how far its insides let it."""
    measured = capacity["measured"]
    reached = "k = 1 is above 1%" if measured == 0 else "not measured" if measured is None else f"every k ≤ {measured} at 1%"
    if capacity["predicted"] is None:
        return f"Capacity: {reached}."
    used = capacity["predicted_transplant"]
    stands = f", {used} by what it stands for" if used is not None else ""
    allows = f"the block before the last allows {capacity['predicted']} by what it holds{stands}"
    more = capacity["predicted_sequential"]
    return f"Capacity: {reached}; {allows} (2R + 1; one hop more: {more})."


def growth_text(found: Verdict) -> str:
    """R(ℓ+1)/R(ℓ) before k is reached."""
    steps = [
        f"{one['by']} {one['layers'][0]}→{one['layers'][1]}: {one['ratio']:.2g} ({one['low']:.2g} to {one['high']:.2g})"
        for one in found.growth
    ]
    return f"Growth before k: {'; '.join(steps)}. Doubling: 2 to 3." if steps else ""


def survey_table(found: Survey) -> Table:
    """A row a k."""
    table = ruled_table("k", "error %", "verdict", "form", "stands for", "holds at most")
    for k, one in found.verdicts.items():
        cells = (one.verdict, one.form or "", hops_text(one.resolved["transplant"]), hops_text(one.resolved["probe"]))
        table.add_row(str(k), f"{100 * one.error['error']:.2f}", *cells)
    return table


def survey_reading(found: Survey, name: str) -> str:
    """How many k got which verdict, and the capacity."""
    by_verdict: dict[str, list[int]] = {}
    for k, one in found.verdicts.items():
        by_verdict.setdefault(one.verdict + (f" ({one.form})" if one.form else ""), []).append(k)
    parts = "; ".join(f"{verdict} at k = {', '.join(map(str, ks))}" for verdict, ks in by_verdict.items())
    unmeasured = [f"k = {k}: no verdict ({why})." for k, why in found.unmeasured.items()]
    return "\n".join([*unmeasured, capacity_text(found.capacity), f"{name}: {parts}."])
