"""The command that trains a model: its options are the fields of TrainConfig."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hopinterp.cli.shared import INTERRUPTED, app, find_device, show, working
from hopinterp.errors import HopInterpError
from hopinterp.training.config import PRESETS, TrainConfig

Out = Annotated[Path | None, typer.Option(help="The run directory to make; the model will be in it.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with the run in this directory; all settings are its own.")]
Preset = Annotated[str, typer.Option(help="; ".join(f"{name}: {preset.words}" for name, preset in PRESETS.items()) + ".")]
Threads = Annotated[int | None, typer.Option(help="Processor threads; the machine's choice by default.")]
RunDevice = Annotated[str, typer.Option(help="auto (a resumed run: where it ran before), cpu, cuda or mps.")]


def train(
    *,
    out: Out = None,
    resume: Resume = None,
    preset: Preset = "full",
    threads: Threads = None,
    device: RunDevice = "auto",
    **settings: Any,
) -> None:
    """Train a model of the task, or go on with a run that was interrupted."""
    import torch

    from hopinterp.models import store
    from hopinterp.training import loop, record
    from hopinterp.views import tables

    if out is not None and resume is None:
        directory = out
    elif resume is not None and out is None:
        directory = resume
    else:
        raise HopInterpError("train needs --out for a new run, or --resume for one to go on with")
    if threads is not None:
        if threads < 1:
            raise HopInterpError(f"--threads is {threads}; at least 1 is needed")
        torch.set_num_threads(threads)
    try:
        with working("training") as report:
            if out is not None:
                loop.train(TrainConfig.preset(preset, **settings), out, device=find_device(device), report=report)
            else:
                if given := [name for name, value in settings.items() if value is not None]:
                    raise HopInterpError(f"a resumed run has its own settings; --{given[0].replace('_', '-')} cannot change")
                loop.resume(directory, device=None if device == "auto" else find_device(device), report=report)
    except KeyboardInterrupt:
        print(f"hopinterp: interrupted; go on with: hopinterp train --resume {directory}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    show(None, tables.model_reading(directory, store.read_card(directory / record.MODEL)))


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every field of TrainConfig in the place of its `**settings`, none of them required."""
    own = inspect.signature(command).parameters.values()
    types = get_type_hints(TrainConfig)
    options = [_option(one, types[one.name]) for one in fields(TrainConfig)]
    parameters = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = get_type_hints(command, include_extras=True)
    parameters = [p.replace(annotation=hints[p.name]) for p in parameters] + options
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _option(setting: Field[Any], kind: Any) -> inspect.Parameter:
    plain = _text(setting.default)
    others = {name: _text(preset.settings.get(setting.name, setting.default)) for name, preset in PRESETS.items()}
    differing = "".join(f"; {name} {text}" for name, text in others.items() if text != plain)
    option = typer.Option(help=f"{setting.metadata['help']} Default: {plain}{differing}.")
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _text(value: Any) -> str:
    """A setting as it is typed; booleans are flags."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


app.command()(with_settings(train))
