"""The command that trains a model: its options are the fields of TrainConfig."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hopinterp import signals
from hopinterp.cli.shared import Number, Whole, choices, show, whole, working
from hopinterp.devices import find_device, most_threads
from hopinterp.errors import HopInterpError
from hopinterp.shown import legible
from hopinterp.training.config import DEEP, PRESETS, TrainConfig

Out = Annotated[Path | None, typer.Option(help="The run directory to make; the model will be in it.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with the run in this directory; all settings are its own.")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="; ".join(f"{name}: {preset.words}" for name, preset in PRESETS.items()) + ". Default: full.",
        autocompletion=choices(*PRESETS),
    ),
]
Threads = Annotated[int | None, whole("Processor threads; the machine's choice by default.")]
RunDevice = Annotated[
    str,
    typer.Option(
        help="auto (a resumed run: where it ran before), cpu, cuda or mps.",
        autocompletion=choices("auto", "cpu", "cuda", "mps"),
    ),
]
_PANELS = {
    "layers": "The model",
    "letters": "The task",
    "steps": "Optimisation",
    "curriculum": "What is trained on",
    "bf16": "Speed",
    "tensorboard": "Records and seed",
}
"""The panel that begins in the help with each of these settings."""


def train(
    *,
    out: Out = None,
    resume: Resume = None,
    preset: Preset = None,
    threads: Threads = None,
    device: RunDevice = "auto",
    **settings: Any,
) -> None:
    """Train a model of the task, or go on with a run that was interrupted."""
    import torch

    from hopinterp.models import store
    from hopinterp.models.places import MODEL
    from hopinterp.training import loop
    from hopinterp.views import tables

    if out is not None and resume is None:
        directory = out
    elif resume is not None and out is None:
        directory = resume
    else:
        raise HopInterpError("train needs --out for a new run, or --resume for one to go on with")
    if threads is not None:
        most = most_threads()
        if not 1 <= threads <= most:
            raise HopInterpError(f"--threads is {threads}; this machine takes 1 to {most}")
        torch.set_num_threads(threads)
    try:
        with working("training") as report:
            if out is not None:
                loop.train(TrainConfig.preset(preset or "full", **settings), out, device=find_device(device), report=report)
            else:
                given = [name for name, value in {"preset": preset, **settings}.items() if value is not None]
                if given:
                    raise HopInterpError(f"a resumed run has its own settings; --{given[0].replace('_', '-')} cannot change")
                loop.resume(directory, device=None if device == "auto" else find_device(device), report=report)
    except KeyboardInterrupt as stopped:
        again = f"hopinterp train --resume {shlex.quote(legible(str(directory)))}"
        print(f"hopinterp: {signals.in_words(stopped)}; go on with: {again}", file=sys.stderr)
        sys.exit(signals.status(stopped))
    show(None, tables.model_reading(directory, store.read_card(directory / MODEL)), directory)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every field of TrainConfig in the place of its `**settings`, none of them required."""
    own = inspect.signature(command).parameters.values()
    types = get_type_hints(TrainConfig)
    panel, options = "", []
    for one in fields(TrainConfig):
        panel = _PANELS.get(one.name, panel)
        options.append(_option(one, types[one.name], panel))
    parameters = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = get_type_hints(command, include_extras=True)
    parameters = [p.replace(annotation=hints[p.name]) for p in parameters] + options
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _option(setting: Field[Any], kind: Any, panel: str) -> inspect.Parameter:
    plain = _text(setting.default)
    others = {name: _text(preset.settings.get(setting.name, setting.default)) for name, preset in PRESETS.items()}
    deep = {name: preset.deep for name, preset in PRESETS.items() if setting.name in preset.deep}
    others |= {f"{name} from {DEEP} layers on": _text(changed[setting.name]) for name, changed in deep.items()}
    differing = "".join(f"; {name} {text}" for name, text in others.items() if text != plain)
    parsed: dict[type, Any] = {int: Whole, float: Number}
    parser = parsed[kind]() if kind in parsed else None
    shown = {"parser": parser, "metavar": parser.name} if parser else {}
    words = f"{setting.metadata['help']} Default: {plain}{differing}."
    option = typer.Option(help=words, rich_help_panel=panel, **shown)
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _text(value: Any) -> str:
    """A setting as it is typed; booleans are flags."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


with_settings(train)
