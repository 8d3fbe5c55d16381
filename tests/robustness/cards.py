"""Damaged model cards: in a model that is asked something, or as the neighbour of one that is listed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from . import samples, values
from .campaign import Case, Outcome

_EVAL = ("eval", "m", "--sequences", "4", "--json")
_COMMANDS = (
    *(_EVAL,) * 12,
    ("eval", "m", "--sequences", "4"),
    ("attention", "m", "--hops", "2", "--sequences", "4", "--json"),
    ("transplant", "m", "--hops", "2", "--sequences", "4"),
    ("patch", "m", "--hops", "1", "--sequences", "4", "--json"),
    ("verify", "m", "--sequences", "4"),
    ("models", "."),
    ("models", "."),
    ("models", ".", "--json"),
)


def generate(rng: random.Random, place: Path) -> Case:
    """A model whose card is damaged, and a command about it."""
    files = samples.model()
    samples.write(place / "m", files)
    samples.write(place / "good", files)
    words = rng.choice(_COMMANDS)
    path = place / "m" / "card.json"
    if rng.random() < 0.04:
        what = values.no_file(rng, path)
    else:
        data, what = values.mutate_json(rng, files["card.json"])
        path.write_bytes(data)
    fine = path.is_file() and path.stat().st_size <= 2**20 and is_card(path.read_bytes())
    if words[0] == "models":
        if rng.random() < 0.5:
            name = rng.choice([word for word in values.WORDS if 0 < len(word) < 100 and not {*"/\x00\ud800"} & {*word}])
            path.parent.rename(place / name)
            what = f"{what}, named {name!r}"
        return Case(what, words, must="accept", wrong=_listed)
    return Case(what, words, must="either" if fine else "refuse", wrong=_answers if "--json" in words else _nothing)


def _nothing(_: Outcome) -> None:
    return None


def is_card(data: bytes) -> bool:
    """Whether text is a card for the sample's weights: an independent reading of what a card says."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    try:
        given, plain = json.loads(data.decode(), object_pairs_hook=once), samples.card()
        json.dumps(given, ensure_ascii=False).encode()
        return given.keys() == plain.keys() and given["format"] == 1 and _fits(given, plain) and _describes(given)
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _fits(given: Any, plain: Any) -> bool:
    """Whether the sizes are those of the weights, and of a task that they can be asked."""
    spec, task = given["spec"], given["task"]
    free = {"act_fn", "use_attn_scale", "eps"}
    same = spec.keys() == plain["spec"].keys() and task.keys() == plain["task"].keys()
    same &= all(_equal(spec[name], value) for name, value in plain["spec"].items() if name not in free)
    same &= spec["act_fn"] in ("gelu", "gelu_new", "relu") and type(spec["use_attn_scale"]) is bool
    same &= type(spec["eps"]) in (int, float) and 0 < spec["eps"] <= 1
    letters, alphabet, hops = (task[name] for name in ("n_letters", "alphabet_size", "max_hops"))
    whole = all(type(size) is int for size in task.values()) and letters >= 1 and alphabet >= 2 and hops >= 0
    fits = hops + alphabet + 3 <= spec["d_vocab"] and letters < spec["n_ctx"]
    return bool(same and whole and fits and given["sha256"] == plain["sha256"])


def _describes(given: Any) -> bool:
    """Whether what it tells of how the model was made and measured can be."""
    hops, most = given["made"].get("hops"), given["task"]["max_hops"]
    told = hops is None or (type(hops) is int and 1 <= hops <= most)
    told &= all(isinstance(version, str) for version in given["versions"].values())
    for name in ("errors", "low", "high"):
        for k, share in given["errors"].get(name, {}).items():
            told &= (
                str(int(k)) == k
                and 0 <= int(k) <= most
                and (share is None or (type(share) in (int, float) and 0 <= share <= 1))
            )
    return bool(told)


def _equal(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


def _answers(outcome: Outcome) -> str | None:
    """What is wrong with a result in JSON: it is none, or the error rates are not."""
    if not outcome.out.isascii() or outcome.out.count("\n") != 1:
        return "its JSON is not one line of ASCII"
    found = json.loads(outcome.out)
    for k, share in found.get("errors", {}).items():
        if share is not None and not (math.isfinite(share) and 0 <= share <= 1):
            return f"err_{k} is {share}"
    return None


def _listed(outcome: Outcome) -> str | None:
    """What is wrong with a list of models: the good one is not there."""
    if outcome.out.startswith("{"):
        found = json.loads(outcome.out)
        return None if "broken" not in found["good"] else "the good model is broken"
    return None if any(line.split()[:1] == ["good"] for line in outcome.out.splitlines()) else "the good model is not listed"
