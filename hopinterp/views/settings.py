"""Settings and thresholds of a verdict in words, by what they were settings of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hopinterp.decompile.records import Decompiled
from hopinterp.evidence.kinds import KINDS
from hopinterp.judgement.records import Verdict

WORDS = {
    "sequences": "sequences that it was measured on",
    "seed": "seed of every draw",
    "level": "level of the intervals",
    "hops": "k",
    "model_digest": "SHA-256 of the sizes and parameters that were measured, not of the file that they came from",
    # bars
    "solved": "k is solved where the upper end of err_k is at most",
    "failed": "k fails where the lower end of err_k is above",
    "held": "a hop is held where a probe closes at least this share of the gap from the best cheaper explanation to 1",
    "stands_for": "a block stands for what closes more than this share of the gap from chance to 1",
    "needed": "a chain position matters where the effect of the patch is above",
    "attended": "a head attends to find^j where its cosine with it is at least",
    "bar": "bar that decided",
    "margin": "share of the gap from chance to 1 that must be closed",
    # behaviour
    "distinct": "sequences for chains without a repeat (0: not asked)",
    "dropout": "dropout while it answered",
    # probes
    "target": "what probes read at find^j(i)",
    "method": "how probes are fitted",
    "train_sequences": "sequences that probes are fitted on",
    # transplants
    "match": "what base and source have in common",
    "next_agrees": "only where the next letter is the same in both (1: yes)",
    "weights": "what was folded into the weights, or centred",
    # patching
    "direction": "direction of the patch",
    "pairs": "how pairs of sequences are drawn",
    "redrawn": "share of the drawn sequences that were thrown away: no counterfactual of them exists",
    "site": "what is patched",
    "by": "where it is patched",
    # the program
    "draws": "draws of every shuffled or redrawn control",
    "orders": "orders in which nodes are pruned",
    "every_way": "whether ways that do the work of others were sought",
}
"""What each setting is, by its name in the results' attrs."""

_GENERAL = ("model", "n_letters", "alphabet_size", "max_hops", "version")  # the same for all, and on the page's top


@dataclass(frozen=True)
class Setting:
    """One setting: in words, by its name, and its value."""

    words: str
    name: str
    value: str


def named_settings(found: Verdict | Decompiled) -> dict[str, list[Setting]]:
    """Of the verdict, of the program and of each kind of evidence, under the heading of each."""
    program = found if isinstance(found, Decompiled) else found.program
    groups: dict[str, Mapping[str, Any]] = {"verdict": found.settings} if isinstance(found, Verdict) else {}
    if program is not None:
        groups["program"] = _flat(program.settings)
    evidence = found.evidence if isinstance(found, Verdict) else {}
    groups |= {KINDS[kind].words if kind in KINDS else kind: one.attrs for kind, one in evidence.items()}
    return {
        heading: [_setting(name, value) for name, value in given.items() if name not in _GENERAL]
        for heading, given in groups.items()
    }


def number(value: Any) -> str:
    """A value as text; of a fraction four digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "undefined" if value != value else f"{value:.4g}"
    return str(value)


def _setting(name: str, value: Any) -> Setting:
    outer, _, inner = name.partition(": ")
    words = WORDS.get(outer, outer.replace("_", " ")) if not inner else f"sequences for its {inner}"
    return Setting(words, name, number(value))


def _flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings within settings, each by both names."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        found |= {f"{name}: {inner}": one for inner, one in value.items()} if isinstance(value, Mapping) else {name: value}
    return found
