"""A model in a layout of the Hugging Face Hub: a local directory to upload as it is, and to read once it was downloaded.

Nothing here reaches the network: `hf upload USER/NAME DIR` shares what `export` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
import torch

from hopinterp import files
from hopinterp.errors import HopInterpError
from hopinterp.models import architectures, gpt2, store
from hopinterp.models.card import Card
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.places import CARD, WEIGHTS
from hopinterp.shown import legible

CONFIG, README = "config.json", "README.md"
Layout = Literal["hopinterp", "gpt2"]
_PAPER = "https://arxiv.org/abs/2402.09268"


def export(
    model: str | Path,
    directory: str | Path,
    *,
    layout: Layout = "hopinterp",
    license: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as a local directory in a layout of the Hub, whole or not at all; reading it back gives the same bits.

    Args:
        model: a model directory, a run directory, or a shipped model's name.
        layout: "hopinterp": the model directory itself, with the Hub's config.json and README.md (its model card) beside it;
            `load` reads it. "gpt2": what `save_pretrained` writes of a GPT-2, which transformers and `import_gpt2` read; the
            task stands in its config.
        license: its name in the model card ("mit"); none is named unless given.

    Raises:
        HopInterpError: no such model or layout; a model that is no GPT-2 where that is asked for (blocks without an MLP, an
            unembedding with a bias, …); a directory that exists (unless `overwrite`) or cannot be written.
    """
    if layout not in get_args(Layout):
        raise HopInterpError(f"layout is {layout!r}; it is one of {', '.join(get_args(Layout))}")
    target, source = Path(directory), store.find(model)
    fused, _ = store.load_fused(source)
    card, name = store.read_card(source), target.absolute().name
    store.check_free(target, overwrite, also=(CONFIG, README))
    if layout == "gpt2":
        contents = _gpt2(fused, card)
    else:
        config = {"model_type": "hopinterp", "spec": card.spec.to_dict(), "task": asdict(card.task)}
        contents = {WEIGHTS: files.read_digested(source / WEIGHTS, card.sha256, CARD)}
        contents |= {CARD: files.read_file(source / CARD), CONFIG: _json(config)}
    contents[README] = _readme(name, card, layout, license).encode()
    files.write_directory(target, contents, overwrite=overwrite)
    return target


def names(layout: Layout) -> list[str]:
    """The files that `export` writes."""
    return sorted([WEIGHTS, CONFIG, README, *([CARD] if layout == "hopinterp" else [])])


def _gpt2(model: FusedTransformer, card: Card) -> dict[str, bytes]:
    """The files that `save_pretrained` would write; first it is seen that they give the model back, bit for bit."""
    state, config = gpt2.written(model)
    again = architectures.convert(gpt2.GPT2, state, gpt2.GPT2.sizes(config))
    if again.spec != model.spec or any(not torch.equal(p, model.parameters[name]) for name, p in again.parameters.items()):
        raise HopInterpError("as a GPT-2 this model would not come back the same; it is not written")
    config[gpt2.OURS] = {"task": asdict(card.task)}
    return {WEIGHTS: safetensors.torch.save(state, {"format": "pt"}), CONFIG: _json(config)}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"


def _readme(name: str, card: Card, layout: Layout, license: str | None) -> str:
    """The model card: its metadata as the Hub reads them, then what a reader needs."""
    from huggingface_hub import EvalResult, ModelCardData

    task, spec = card.task, card.spec
    asked = f"k-hop induction heads, {task.n_letters} letters of {task.alphabet_size}"
    measured = {int(k): float(error) for k, error in card.errors.get("errors", {}).items() if error is not None}
    results = [
        EvalResult(
            task_type="k-hop-induction-heads", dataset_type="k-hop-induction-heads", dataset_name=asked,
            metric_type="error-rate", metric_name=f"err_{k}", metric_value=round(error, 6),
        )
        for k, error in sorted(measured.items())
    ]  # fmt: skip
    data = ModelCardData(
        library_name="transformers" if layout == "gpt2" else "hopinterp",
        license=license,
        tags=["hopinterp", "mechanistic-interpretability", "k-hop-induction-heads"],
        model_name=name,
        eval_results=results or None,
    )
    sizes = f"{spec.n_layers} blocks, width {spec.d_model}, {spec.n_heads} heads, {spec.n_parameters:,} parameters"
    words = [
        f"# {name}",
        f"A transformer of the k-hop induction heads task ([Sanford, Hsu and Telgarsky]({_PAPER})): {sizes}. It reads k and"
        f" {task.n_letters} letters of an alphabet of {task.alphabet_size}, and names at every position the letter k hops"
        f" back, for k up to {task.max_hops}.",
        "## Use",
        _use(name, layout),
        "## How it was made",
        legible(str(card.made.get("how", "not said"))) + ".",
        *([f"    {legible(str(card.made['command']))}"] if "command" in card.made else []),
        *(["## Measured", _table(card.errors, measured)] if measured else []),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(words) + "\n"


def _use(name: str, layout: Layout) -> str:
    lines = ["import hopinterp as hi", ""]
    if layout == "gpt2":
        lines += [f'model, task = hi.import_gpt2("{name}")  # or transformers: from_pretrained("{name}")']
    else:
        lines += [f'model, task = hi.load("{name}")  # a HookedTransformer and its HopTask']
    lines += ["print(hi.verify(model, task, hops=4))"]
    return "In the folder that it was downloaded to:\n\n```python\n" + "\n".join(lines) + "\n```"


def _table(errors: Mapping[str, Any], measured: Mapping[int, float]) -> str:
    """err_k with its interval, a row a k."""
    rows = ["| k | err_k, % | 95% interval |", "| --- | --- | --- |"]
    for k, error in sorted(measured.items()):
        ends = [errors.get(end, {}).get(str(k)) for end in ("low", "high")]
        interval = "–" if None in ends else f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}"
        rows.append(f"| {k} | {100 * error:.2f} | {interval} |")
    return "Share of answered positions that are wrong, in eval mode:\n\n" + "\n".join(rows)
