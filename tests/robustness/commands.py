"""Odd command lines: numbers, names and paths that cannot be, flags that contradict each other, places that are no files."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from . import samples, values
from .campaign import Case, Outcome

_BAD_NUMBERS = (
    "",
    "abc",
    "1.5",
    "1e3",
    "0x10",
    "٣",
    "３",
    "²",
    " 2",
    "2 ",
    "2_0",
    "--",
    "-",
    "NaN",
    "inf",
    "\n3",
    "½",
    "9" * 25,
    "1" * 5000,
)
_HUGE = ("999999999999999999", "1000000000", "100000000000", "2147483648")
_SMALL = ("1", "2", "3", "4", "0", "-1", "+2", "-0", "007", "5", "8")
_BAD_FLOATS = (
    "nan",
    "inf",
    "-inf",
    "-0.1",
    "1e999",
    "x",
    "",
    "٠.٥",
    "1",
    "2",
    "0.5",
    "1e-300",
    "0,5",
    "5e-324",
    "1.0000001",
)
_HOPS = (
    "",
    "0",
    "1",
    "2",
    "1-2",
    "1,2",
    "2-1",
    "-1",
    "1-",
    "1-999999999",
    "1--2",
    "٣",
    "all",
    "1-2-3",
    "9" * 30,
    "1,,2",
    " 1",
    "2," * 900,
)
_WORDS = (*(word for word in values.WORDS if "\x00" not in word and "\ud800" not in word), "\udcff", "cuda", "mps", "auto:0")

# each command, small enough to be quick, and what it takes beside; options come in again behind, and the last one counts
_MODEL = ("--sequences", "4")
_SIZES = {name: value for name, value in samples.RUN.items() if name != "checkpoint_every"}
_FLAGS = [word for name, value in _SIZES.items() for word in (f"--{name.replace('_', '-')}", str(value))]
_TRAIN = ("--preset", "quick", *_FLAGS)
_BASES: dict[str, tuple[str, ...]] = {
    "eval": ("eval", "m", *_MODEL),
    "attention": ("attention", "m", "--hops", "2", *_MODEL),
    "probe": ("probe", "m", "--hops", "1", "--method", "ridge", "--train-sequences", "8", *_MODEL),
    "patch": ("patch", "m", "--hops", "1", *_MODEL),
    "transplant": ("transplant", "m", "--hops", "1", *_MODEL),
    "verify": ("verify", "m", "--hops", "2", *_MODEL),
    "decompile": ("decompile", "m", "--hops", "2", "--sequences", "20"),
    "compare": ("compare", "m", "u", "--hops", "2", *_MODEL),
    "models": ("models", "."),
    "import": ("import", "x.pt", "--heads", "2", "--letters", "12", "--max-hops", "4", "--out", "new"),
    "construct": ("construct", "--out", "new", "--hops", "2", "--letters", "20", "--max-hops", "4"),
    "train": ("train", "--out", "new", *_TRAIN),
}
_COUNTS: dict[str, tuple[str, ...]] = {  # options that take whole numbers of which too many are too many
    "eval": ("--sequences", "--distinct"),
    "attention": ("--sequences",),
    "probe": ("--sequences", "--train-sequences", "--layer"),
    "patch": ("--sequences", "--link", "--position"),
    "transplant": ("--sequences", "--layer"),
    "verify": ("--sequences",),
    "decompile": ("--sequences",),
    "compare": ("--sequences",),
    "import": ("--heads", "--letters", "--alphabet", "--max-hops"),
    "construct": ("--letters", "--alphabet", "--max-hops", "--hops"),
    "train": (
        "--layers",
        "--d-model",
        "--heads",
        "--letters",
        "--alphabet",
        "--max-hops",
        "--batch",
        "--samples",
        "--threads",
    ),
}
_EVERY = ("--checkpoint-every", "--keep-every", "--log-every", "--eval-every", "--warmup")
_SHARES = ("--lr", "--decay", "--weight-decay", "--beta2", "--clip", "--dropout")
_CHOICES: dict[str, tuple[str, ...]] = {
    "patch": ("--site", "--by", "--pairs", "--direction", "--metric", "--device"),
    "probe": ("--target", "--method", "--device"),
    "transplant": ("--match", "--device"),
    "import": ("--act",),
    "construct": ("--algorithm",),
    "train": ("--preset", "--act-fn", "--unembed", "--optimizer", "--device"),
}
_RIGHT = {
    "--site": ("resid_pre", "mlp_out", "z", "pattern"),
    "--by": ("position", "all", "chain"),
    "--pairs": ("one-link", "resample"),
    "--direction": ("noising", "denoising"),
    "--metric": ("accuracy", "probability"),
    "--target": ("position",),
    "--match": ("letter", "neighbour", "occurrence"),
    "--algorithm": ("successor", "sequential"),
    "--act": ("relu",),
    "--act-fn": ("relu",),
    "--unembed": ("identity",),
    "--optimizer": ("adamw",),
}
_CONTRADICTIONS = (
    "construct --out new --hops 2 --multi-task",
    "construct --out new",
    "construct --out m --hops 2",
    "construct --out m --hops 2 --no-overwrite",
    "train --out new --resume run",
    "train",
    "train --resume run --preset quick",
    "train --resume run --lr 0.1",
    "train --resume run --seed 0",
    "train --resume run --no-curriculum",
    "train --resume m",
    "train --resume nowhere",
    "train --out m",
    "train --out run",
    "train --out new --samples 100 --curriculum",
    "train --out new --samples 2 --batch 4",
    "train --out new --short-until 0.9",
    "train --out new --short-until 0.9 0.1",
    "train --out new --short-until nan nan",
    "train --out new --compile --dropout 0.1",
    "transplant m --hops 1 --heads --plot f.png",
    "patch m --hops 1 --link 1",
    "patch m --hops 1 --pairs one-link --link 5",
    "patch m --hops 1 --by chain --position 99",
    "decompile m --hops 2 --out m",
    "import m --out new",
    "import x.pt --out new",
    "import x.pt --heads 2 --out m",
    "import x.pt --heads 2 --out x.pt",
    "eval m m",
    "eval",
    "compare m",
    "compare m ./m m",
    "compare m u --program",
    "compare m u --hops 1-2 --program",
    "compare m x.pt",
    "frobnicate",
    "eval m --frobnicate",
    "eval m --sequences",
    "verify m --report r.pdf",
    "verify m --report m",
    "eval m --plot f.docx",
    "eval m --plot f",
    "eval m --plot .png",
    "eval m --plot m",
    "eval --",
    "models nowhere",
    "models x.pt",
    "models m u",
)
_PATHS = (
    *(
        "new",
        "a b",
        "é",
        "\u202e",
        "[/nope]",
        "$HOME",
        "$x$",
        "x" * 255,
        "x" * 5000,
        "a/b/c",
        "nowhere/x",
        "m",
        "m/card.json/x",
        "run",
    ),
    *(
        "dangling",
        "linked",
        "linked/new",
        "pipe",
        "socket",
        "/dev/zero",
        "/dev/full",
        "/dev/null",
        "/proc/self/x",
        "",
        ".",
        "..",
        "/",
    ),
    *(
        "-x",
        "a\nb",
        "\x1b[31m",
        "\udcff",
        "~",
        "*",
        "new/",
        "./new",
        "a'b",
        'a"b',
        "%s",
        "{x}",
        "x.pt",
        "sparse",
        "loop/x",
        "loop",
        ".new",
    ),
    *(
        "é" * 127,
        "é" * 128,
        "\x7f",
        "\x9b",
        "\u2028",
        "a\tb",
        "/proc/1/mem",
        "/sys/x",
        "new/../x",
        "m/../new",
        "closed/x",
        "closed",
    ),
)


def generate(rng: random.Random, place: Path) -> Case:
    """A command line in a folder with models, a run, a checkpoint, and things that are no files."""
    _furnish(place)
    ways = (
        _numbers,
        _numbers,
        _numbers,
        _paths,
        _paths,
        _paths,
        _names,
        _named,
        _choices,
        _shares,
        _contradiction,
        _sources,
    )
    case = rng.choice(ways)(rng)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "ascii"))
    return Case(case.what, case.words, None, case.must, case.wrong, case.makes, (), encoding)


def _furnish(place: Path) -> None:
    samples.write(place / "m", samples.doubling())
    samples.write(place / "u", samples.model())
    samples.write(place / "run", samples.run())
    (place / "x.pt").write_bytes(samples.torch_saved(samples.gpt2()))
    (place / "outside").mkdir()
    (place / "outside" / "kept").write_bytes(b"x")
    (place / "linked").symlink_to("outside")
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "pipe")
    (place / "closed").mkdir(mode=0o555)
    with open(place / "sparse", "wb") as file:
        file.truncate(20 * 10**9)


def _case(words: tuple[str, ...], what: str, must: str = "either", makes: tuple[str, ...] = ()) -> Case:
    return Case(what, words, must=must, wrong=_is_json if "--json" in words else _said, makes=makes)


def _said(outcome: Outcome) -> str | None:
    return None if outcome.out.strip() else "accepted without a word"


def _is_json(outcome: Outcome) -> str | None:
    def no_number(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(outcome.out, parse_constant=no_number)
    except ValueError as error:
        return f"no JSON: {error}"
    return None if outcome.out.isascii() and outcome.out.count("\n") == 1 else "JSON of several lines, or not of ASCII"


def _numbers(rng: random.Random) -> Case:
    """A whole number that is none, is too small, or too large."""
    name = rng.choice(sorted(_COUNTS))
    every = name == "train" and rng.random() < 0.4
    option = rng.choice(_EVERY if every else (*_COUNTS[name], "--seed")) if name != "models" else "--seed"
    kind = rng.choice(("bad", "huge", "small", "small"))
    value = rng.choice({"bad": _BAD_NUMBERS, "huge": _HUGE, "small": _SMALL}[kind])
    if name in ("eval", "verify", "decompile", "compare") and rng.random() < 0.3:
        option, kind, value = "--hops", "hops", rng.choice(_HOPS)
    bounded = kind == "huge" and option not in ("--seed", *_EVERY)
    must = "refuse" if kind == "bad" or bounded else "either"
    words = (*_BASES[name], option, value, *rng.choice(((), ("--json",) if name != "train" else ())))
    return _case(words, f"number: {name} {option} {value[:20]!r}", must, _new(name))


def _new(name: str) -> tuple[str, ...]:
    return ("new",) if name in ("import", "construct", "train") else ()


def _paths(rng: random.Random) -> Case:
    """A place to write that cannot be, or is something else."""
    path = rng.choice(_PATHS)
    kind = rng.choice(("--plot", "--plot", "--report", "--out", "--out", "--save", "--csv"))
    if kind in ("--save", "--csv"):
        name = rng.choice(("eval", "attention", "probe", "patch", "transplant", "decompile", "verify"))
        words = (*_BASES[name], kind, path)
        also = ("new",) if kind == "--save" else ("sparse", "x.pt")  # folders are made on the way; a file is replaced
        return _case(words, f"path: {name} {kind} {path[:30]!r}", makes=(*_made_at(path, False), *also))
    if kind == "--out":
        name = rng.choice(("construct", "construct", "import", "train", "decompile"))
        words = (
            *_BASES[name],
            "--out",
            path,
            *rng.choice(((), ("--overwrite",) if name in ("construct", "import") else ())),
        )
    elif kind == "--report":
        name, path = "verify", path + rng.choice((".html", "", ".HTML"))
        words = (*_BASES[name], kind, path)
    else:
        name = rng.choice(("eval", "attention", "patch"))
        path += rng.choice(
            (".png", ".svg", ".pdf", ".jpg", ".tiff", ".webp", ".eps", ".ps", ".pgf", ".raw", "", ".PNG", ".gif")
        )
        words = (*_BASES[name], kind, path)
    return _case(words, f"path: {name} {kind} {path[:30]!r}", makes=_made_at(path, "--overwrite" in words))


def _made_at(path: str, overwrite: bool) -> tuple[str, ...]:
    """What may be new where a path is written: nothing that is there, or that is linked, unless it is to be replaced."""
    plain = os.path.normpath(path).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    if plain.startswith("linked/"):
        return ("outside/" + plain.split("/")[1],)
    there = plain in ("run", "pipe", "closed", "outside", "sparse", "x.pt", "u", "linked", "m") or plain.startswith(
        "closed/"
    )
    if there and not (plain == "m" and overwrite):
        return (plain,) if plain.startswith("closed/") else ()
    if plain.split("/")[0] in ("m", "run", ".."):
        return ("m",) if plain == "m" else ()
    return (plain.split("/")[0], path.split("/")[0])  # "new/../x" is made as mkdir -p makes it, "new" too


def _names(rng: random.Random) -> Case:
    """A model or a file of another name."""
    name = rng.choice(sorted(_BASES.keys() - {"construct", "train"}))
    first, _, *rest = _BASES[name]
    given = rng.choice((*_WORDS, *_PATHS, "depth99", "u", "m/", "./m"))
    return _case((first, given, *rest), f"name: {name} {given[:30]!r}", makes=_new(name))


def _named(rng: random.Random) -> Case:
    """A model whose name is odd, drawn, reported or listed."""
    name = rng.choice(
        [word for word in (*_WORDS, *_PATHS) if "/" not in word and 0 < len(os.fsencode(word)) < 200 and word[0] != "-"]
    )
    if not os.path.lexists(name):
        samples.write(Path(name), samples.doubling())
    first, _, *rest = _BASES[
        kind := rng.choice(("eval", "attention", "patch", "transplant", "probe", "verify", "decompile", "compare", "models"))
    ]
    drawn = {"verify": ("--report", "f.html"), "models": ()}.get(
        kind, ("--plot", rng.choice(("f.png", "f.svg", "f.pdf", "f.eps")))
    )
    given = "." if kind == "models" else f"./{name}"
    return _case(
        (first, given, *rest, *drawn), f"named: {kind} {name[:30]!r}", makes=("f.html", "f.png", "f.svg", "f.pdf", "f.eps")
    )


def _choices(rng: random.Random) -> Case:
    """A word that names none of a few things, or does."""
    name = rng.choice(sorted(_CHOICES))
    words = _BASES[name]
    for _ in range(rng.choice((1, 2, 3))):
        option = rng.choice(_CHOICES[name])
        words += (option, rng.choice(_RIGHT.get(option, ("cpu",))) if rng.random() < 0.6 else rng.choice(_WORDS))
    return _case(words, f"choice: {name} {words[-2]} {words[-1][:30]!r}", makes=_new(name))


def _shares(rng: random.Random) -> Case:
    """A number with a point that is none, or is out of range."""
    if rng.random() < 0.3:
        words = (*_BASES["eval"], "--dropout", rng.choice(_BAD_FLOATS), "--json")
        return _case(words, f"share: eval {words[-2]!r}")
    option, value = rng.choice(_SHARES), rng.choice(_BAD_FLOATS)
    return _case((*_BASES["train"], option, value), f"share: train {option} {value!r}", makes=("new",))


def _contradiction(rng: random.Random) -> Case:
    """Flags that do not go together, or words that are missing."""
    line = rng.choice(_CONTRADICTIONS)
    return _case(tuple(line.split()), f"contradiction: {line}", "refuse")


def _sources(rng: random.Random) -> Case:
    """Something to read that is no file of its kind."""
    given = rng.choice(
        ("pipe", "/dev/zero", "sparse", "loop", "dangling", "linked", "m/card.json", "m/model.safetensors", "run", "m")
    )
    name = rng.choice(("import", "eval", "models", "resume", "verify"))
    if name == "resume":
        return _case(
            ("train", "--resume", given), f"source: resume {given}", "either" if given == "run" else "refuse", ("run",)
        )
    first, _, *rest = _BASES[name]
    return _case((first, given, *rest), f"source: {name} {given}", makes=_new(name))
