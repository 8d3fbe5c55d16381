"""The commands that list, import and construct models."""

from __future__ import annotations

import json
import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from hopinterp.cli.shared import Json, Model, Seed, choices, one_of, print_json, show, whole, working
from hopinterp.errors import HopInterpError
from hopinterp.models.places import model_name
from hopinterp.shown import legible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hopinterp.models.fused import FusedTransformer
    from hopinterp.task import HopTask

ALGORITHMS = ("lookup", "successor", "sequential")
"""For the shell to complete; the registry of hypotheses is known only where torch is imported."""


def models(
    directory: Annotated[
        str | None,
        typer.Argument(
            help="Look here, and in the folders below, for models and training runs; by default among the shipped models."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models that can be named: the shipped ones, or those in a directory, training runs included."""
    from hopinterp.models import store
    from hopinterp.models.places import Listing, search
    from hopinterp.views import tables

    if directory is not None and not (directory and os.path.isdir(directory)):
        raise HopInterpError(f"no directory {directory!r:.200}")
    listed = Listing(store.list_models()) if directory is None else search(directory)
    cards, broken = {}, {}
    for path in listed.models:
        try:
            cards[_listed(path, directory)] = store.read_card(store.find(path))
        except HopInterpError as error:
            broken[_listed(path, directory)] = str(error)
    resumed = {_listed(run, directory): f"hopinterp train --resume {shlex.quote(str(run))}" for run in listed.unfinished}
    if as_json:
        print_json(
            {name: json.loads(card.to_json()) for name, card in cards.items()}
            | {name: {"broken": why} for name, why in broken.items()}
            | {name: {"unfinished": how} for name, how in resumed.items()}
        )
        return
    lines = [f"{legible(name)} is broken: {legible(why)}" for name, why in broken.items()]
    lines += [f"{legible(name)} is an unfinished run; go on with: {legible(how)}" for name, how in resumed.items()]
    lines += [f"{len(cards)} model(s) in {legible(directory or 'trained_models')}."]
    show(tables.models_table(cards), "\n".join(lines))


def _listed(path: Path, directory: str | None) -> str:
    """A model's name in a list: its path in the directory that is listed."""
    within = path.name if directory is None else os.path.relpath(path, directory)
    return model_name(path) if within == "." else within


def import_(
    file: Annotated[
        Path, typer.Argument(help="A GPT-2 state dict (torch.save or safetensors), or what save_pretrained wrote.")
    ],
    out: Annotated[Path, typer.Option(help="The model directory to write.")],
    heads: Annotated[int | None, whole("Attention heads, which a state dict does not show; a config's by default.")] = None,
    letters: Annotated[int | None, whole("Letters in a sequence; two fewer than positions by default.")] = None,
    alphabet: Annotated[int | None, whole("Size of the alphabet; 4 by default, unless a config says other.")] = None,
    max_hops: Annotated[int | None, whole("The largest k; 16 by default, unless a config says other.")] = None,
    act: Annotated[
        str | None,
        typer.Option(help="The MLP's activation: gelu_new (the default, unless a config says other), gelu or relu."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a model directory that is there.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Import a Hugging Face GPT-2 checkpoint of the task, exactly."""
    from hopinterp.models import gpt2, store

    with working("reading the checkpoint") as report:
        model, task = gpt2.import_gpt2(
            file, heads, n_letters=letters, alphabet_size=alphabet, max_hops=max_hops, act_fn=act, report=report
        )
    store.check_free(out, overwrite)
    made = {"how": f"imported from {file.absolute().name}", "heads": model.spec.n_heads}
    _keep(out, model, task, made, _measured(model, task, seed), overwrite, as_json)


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="The directory to write, for `hf upload USER/NAME DIR`.")],
    layout: Annotated[
        str,
        typer.Option(help="hopinterp: a model directory with the Hub's files; gpt2: as save_pretrained writes a GPT-2."),
    ] = "hopinterp",
    license_: Annotated[
        str | None, typer.Option("--license", help="Its name in the model card: mit, say; none by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace such a directory that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as the Hugging Face Hub keeps them, to share it; exactly. Nothing is uploaded."""
    from hopinterp.models import hub

    chosen = one_of("--layout", layout, get_args(hub.Layout))
    hub.export(model, out, layout=chosen, license=license_, overwrite=overwrite)
    written = hub.names(chosen)
    if as_json:
        print_json({"directory": str(out), "layout": layout, "files": written})
    else:
        back = "hopinterp import" if layout == "gpt2" else "hi.load, or any command by its path,"
        show(None, f"{legible(str(out))}: {', '.join(written)}. {back} reads it back to the same bits.")


def construct(
    out: Annotated[Path, typer.Option(help="The model directory to write.")],
    algorithm: Annotated[
        str, typer.Option(help="lookup, successor or sequential.", autocompletion=choices(*ALGORITHMS))
    ] = "lookup",
    hops: Annotated[int | None, whole("k, which the model computes whatever it is asked; else --multi-task.")] = None,
    multi_task: Annotated[
        bool, typer.Option("--multi-task", help="Instead read k from the first token, up to --max-hops.")
    ] = False,
    letters: Annotated[int, whole("Letters in a sequence.")] = 98,
    alphabet: Annotated[int, whole("Size of the alphabet.")] = 4,
    max_hops: Annotated[int, whole("The largest k that has a token.")] = 16,
    overwrite: Annotated[bool, typer.Option(help="Replace a model directory that is there.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a model whose weights are set by hand: the theorem's circuit, or one that it must be told from."""
    if (hops is None) != multi_task:
        raise HopInterpError("construct needs --hops K for a model of one k, or --multi-task for one that reads k")
    from hopinterp.models import store
    from hopinterp.task import HopTask
    from hopinterp.theory.construction import Construction

    task = HopTask(letters, alphabet, max_hops)
    store.check_free(out, overwrite)
    made = Construction.of(task, hops, algorithm)
    errors = _measured(made.fused, task, seed, hops)
    if unscored := [k for k, error in errors["errors"].items() if math.isnan(error)]:
        raise HopInterpError(f"{letters} letters are too few: none of 100 sequences has a chain of {unscored[0]} links")
    how = {"how": f"constructed: {algorithm}, " + ("every k" if hops is None else f"k = {hops}")}
    _keep(out, made.fused, task, how | {"algorithm": algorithm, "hops": hops}, errors, overwrite, as_json)


def _measured(model: FusedTransformer, task: HopTask, seed: int, hops: int | None = None) -> dict[str, Any]:
    """The error table of a new model's card: every k from 1, or the one that it was built for."""
    from hopinterp.evidence.reading.behaviour import error_table, evaluate

    with working("measuring its errors") as report:
        return error_table(evaluate(model, task, hops, seed=seed, report=report))


def _keep(
    out: Path,
    model: FusedTransformer,
    task: HopTask,
    made: Mapping[str, Any],
    errors: Mapping[str, Any],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a new model directory, and say what is in it."""
    from hopinterp.models import store
    from hopinterp.views import tables

    card = store.save(out, model, task, made, errors, overwrite)
    if as_json:
        print_json(json.loads(card.to_json()), out)
    else:
        show(None, tables.model_reading(out, card), out)
