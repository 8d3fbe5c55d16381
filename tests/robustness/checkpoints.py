"""Damaged and hostile `.pt` files and `save_pretrained` folders, before they are imported."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from . import samples, values
from .campaign import Case, Outcome
from .weights import _finite, weights_at

_WORDS = ("import", "x.pt", "--heads", "2", "--out", "new", "--letters", "12", "--max-hops", "4")


def generate(rng: random.Random, place: Path) -> Case:
    """A file to import, or a folder."""
    ways = (_damaged, _damaged, _damaged, _repacked, _in_the_pickle, _in_the_pickle, _hostile, _values, _values, _shapes)
    return rng.choice((*ways, _containers, _names, _odd_file, _folder, _folder))(rng, place)


def _case(place: Path, data: bytes, what: str, must: Any = "either", *, same: bool = False) -> Case:
    """A file to import. Where it is accepted and `same`, its weights must be those of the sample, to the bit."""
    (place / "x.pt").write_bytes(data)

    def wrong(outcome: Outcome) -> str | None:
        found = weights_at(outcome.place / "new")
        return "accepted with other weights" if same and found != samples.imported() else _finite(found)

    return Case(what, _WORDS, must=must, makes=("new",), wrong=wrong)


def _damaged(rng: random.Random, place: Path) -> Case:
    """Bytes changed anywhere: noticed, unless no tensor depends on them."""
    data = samples.torch_saved(samples.gpt2())
    if rng.random() < 0.5:  # in the numbers themselves
        name = rng.choice(sorted(samples.gpt2()))
        at = data.index(samples.gpt2()[name].numpy().tobytes())
        size = 4 * samples.gpt2()[name].numel()
        return _case(place, values.flip(data, 8 * at + rng.randrange(8 * size)), f"bit in a tensor: {name}", "refuse")
    changed, what = values.mutate_bytes(rng, data)
    return _case(place, changed, what, same=True)


def _repacked(rng: random.Random, place: Path) -> Case:
    """The same parts in another kind of zip."""
    data, buffer = samples.torch_saved(samples.gpt2()), io.BytesIO()
    methods = {
        "stored": zipfile.ZIP_STORED,
        "deflated": zipfile.ZIP_DEFLATED,
        "bzip2": zipfile.ZIP_BZIP2,
        "lzma": zipfile.ZIP_LZMA,
    }
    kind = rng.choice((*methods, "bomb", "twice", "without a part", "two pickles", "older format", "gzip", "encrypted"))
    if kind == "older format":
        torch.save(samples.gpt2(), buffer, _use_new_zipfile_serialization=False)
        return _case(place, buffer.getvalue(), "older format: whole", "refuse")
    if kind == "gzip":
        return _case(place, gzip.compress(data), "gzip: whole", "refuse")
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", methods.get(kind, zipfile.ZIP_STORED)) as new,
    ):
        names = old.namelist()
        left_out = rng.choice(names) if kind == "without a part" else None
        for name in names:
            if name != left_out:
                new.writestr(name, old.read(name))
        if kind == "bomb":
            new.writestr("archive/data/99", bytes(2**28), zipfile.ZIP_DEFLATED)
        if kind == "twice":
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new.writestr(rng.choice(names), rng.choice((b"", bytes(64))))
        if kind == "two pickles":
            new.writestr("other/data.pkl", b"\x80\x02}.")
    found = buffer.getvalue()
    if kind == "encrypted":
        found = found.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")
    must = "either" if kind in ("stored", "encrypted", "twice", "without a part") else "refuse"
    return _case(place, found, f"{kind}: zip", must, same=True)


def _in_the_pickle(rng: random.Random, place: Path) -> Case:
    """The pickle changed and its checksum made right again."""
    data, what = samples.torch_saved(samples.gpt2()), ""

    def change(pickled: bytes) -> bytes:
        nonlocal what
        kind = rng.choice(("bytes", "bytes", "bytes", "storage", "stride", "shape", "offset", "name"))
        changed, what = values.mutate_bytes(rng, pickled)
        numbers = {"storage": rng.choice((0, 1, 2**31 - 1, 255)), "stride": 0, "shape": 2**31 - 1, "offset": 2**20}
        if kind in numbers:  # one of the pickle's whole numbers of one byte, as one of four
            places = [at for at in range(len(pickled) - 1) if pickled[at : at + 1] == b"K"]
            at = rng.choice(places)
            changed = pickled[:at] + b"J" + numbers[kind].to_bytes(4, "little") + pickled[at + 2 :]
        if kind == "name":
            old = rng.choice(
                (b"FloatStorage", b"torch._utils", b"_rebuild_tensor_v2", b"collections", b"OrderedDict", b"cpu")
            )
            new = rng.choice(
                (b"os", b"builtins", b"eval", b"DoubleStorage", b"cuda", b"meta", b"zeros", b"torch", b"", b"\xff")
            )
            changed = pickled.replace(old, new, rng.choice((1, -1)))
        what = f"pickle {kind}: {what}"
        return changed

    return _case(place, with_pickle(data, change), what)


def with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A torch.save file whose pickle is another, with checksums that are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, change(part) if name.endswith("data.pkl") else part)
    return buffer.getvalue()


class _Calls:
    """What calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def _hostile(rng: random.Random, place: Path) -> Case:
    """Files that would run code, or take all memory, if they were unpickled."""
    touch = f"touch {place.parent / 'canary'}"
    nothing: dict[str, Any] = {"a": 1}
    calls: dict[str, Any] = {
        "system": _Calls(os.system, touch),
        "eval": _Calls(eval, f"__import__('os').system({touch!r})"),
        "exec": _Calls(exec, f"import os; os.system({touch!r})"),
        "open": _Calls(open, str(place.parent / "canary"), "w"),
        "zeros": _Calls(torch.zeros, 10**11),
        "storage": _Calls(torch.FloatStorage, 10**12),
        "size": _Calls(torch.Size, [10**9]),
        "bytearray": _Calls(bytearray, 10**10),
        "load": _Calls(torch.load, str(place / "other.pt")),
        "a module": torch.nn.Linear(2, 2),
        "a function": print,
        "a class": Path,
        "a path": Path("x"),
        "an exception": ValueError("x"),
        "a set": {1, 2},
        "a device": torch.device("cuda"),
        "a type": torch.float32,
        "a generator": _Calls(torch.Generator),
        "nothing": nothing,
    }
    name = rng.choice(sorted(calls))
    value = {**samples.gpt2(), "wte.weight": calls[name]} if rng.random() < 0.5 else calls[name]
    protocol = rng.choice((0, 1, 2, 3, 4, 5))
    whole = rng.choice(("plain pickle", "in a zip", "in a zip"))
    if whole == "plain pickle":
        data = pickle.dumps(calls[name], protocol)
    else:
        buffer = io.BytesIO()
        torch.save(value, buffer, pickle_protocol=max(2, protocol))
        data = buffer.getvalue()
    return _case(place, data, f"{name}: {whole}", "refuse")


def _values(rng: random.Random, place: Path) -> Case:
    """One tensor of another kind."""
    state: dict[str, Any] = dict(samples.gpt2())
    name = rng.choice(sorted(state))
    one = state[name]
    odd: dict[str, Callable[[], Any]] = {
        "nan": lambda: one.clone().fill_(float("nan")),
        "one infinity": lambda: one.clone().index_fill_(0, torch.tensor([0]), float("inf")),
        "huge": lambda: one * 1e37,
        "half": one.half,
        "bfloat16": one.bfloat16,
        "double": one.double,
        "double beyond float": lambda: one.double() * 1e300,
        "whole": one.long,
        "int8": one.char,
        "boolean": one.bool,
        "complex": lambda: one.to(torch.complex64),
        "float8": lambda: one.to(torch.float8_e4m3fn),
        "sparse": one.to_sparse,
        "sparse rows": lambda: one.to_sparse_csr() if one.ndim == 2 else one.to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(one, 0.1, 0, torch.qint8),
        "meta": lambda: one.to("meta"),
        "a parameter": lambda: torch.nn.Parameter(one),
        "with gradient": lambda: one.clone().requires_grad_(),
        "stride 0": lambda: torch.zeros(1).expand(one.shape),
        "stride 0, huge": lambda: torch.zeros(1).expand(10**6, 10**6),
        "a view": lambda: torch.cat([one, one])[: len(one)],
        "a view of much": lambda: torch.zeros(10**6)[: one.numel()].view(one.shape),
        "turned": lambda: one.T.contiguous().T,
        "conjugate": lambda: one.to(torch.complex64).conj(),
        "negative view": lambda: torch._neg_view(one),
        "an array": one.numpy,
        "a list": one.tolist,
        "none": lambda: None,
        "a number": lambda: 1.5,
        "alias": lambda: state[rng.choice(sorted(state))],
        "nested": lambda: {name: one},
        "a nested tensor": lambda: torch.nested.nested_tensor([one.flatten(), one.flatten()]),
    }
    kind = rng.choice(sorted(odd))
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of features of torch that are young
        state[name] = odd[kind]()
        data = samples.torch_saved(state)
    harmless = ("a parameter", "with gradient", "a view", "turned", "double")
    return _case(place, data, f"{kind}: {name}", "accept" if kind in harmless else "either", same=kind in harmless)


def _shapes(rng: random.Random, place: Path) -> Case:
    """One tensor of another shape."""
    state = dict(samples.gpt2())
    name = rng.choice(sorted(state))
    one = state[name]
    odd: dict[str, Callable[[], Tensor]] = {
        "turned": lambda: one.T.clone(),
        "flat": one.flatten,
        "deeper": lambda: one[None],
        "none": lambda: torch.zeros(0),
        "no rows": lambda: one[:0],
        "no columns": lambda: one[..., :0],
        "a number": lambda: torch.tensor(1.0),
        "many axes": lambda: one.reshape(*one.shape, *[1] * 20),
        "shorter": lambda: one[: len(one) // 2].clone(),
        "longer": lambda: torch.cat([one, one]),
        "wide": lambda: torch.cat([one] * 3, -1),
        "much wider": lambda: torch.zeros(1, 3_000_000),
        "much longer": lambda: torch.zeros(3_000_000, 1),
        "prime": lambda: torch.zeros(97),
    }
    kind = rng.choice(sorted(odd))
    state[name] = odd[kind]()
    return _case(place, samples.torch_saved(state), f"shape {kind}: {name}")


def _containers(rng: random.Random, place: Path) -> Case:
    """The state dict in something else, or nothing like it."""
    state = samples.gpt2()
    deep: Any = []
    for _ in range(rng.choice((10, 400))):
        deep = [deep]
    loop: list[Any] = []
    loop.append(loop)
    odd: dict[str, Any] = {
        "a list": [*state.values()],
        "a state_dict": {"state_dict": state},
        "a model": {"model": state},
        "a tuple": (state,),
        "ordered": OrderedDict(state),
        "deep": deep,
        "a loop": loop,
        "a loop beside": {**state, "x": loop},
        "a tensor": state["wte.weight"],
        "a word": "x" * 100_000,
        "nothing": None,
        "a number": 10**400,
        "empty": {},
        "many": {f"x{number}": torch.zeros(1) for number in range(2000)},
        "many names of one": {f"h.{number}.ln_1.weight": state["ln_f.weight"] for number in range(5000)},
    }
    kind = rng.choice(sorted(odd))
    return _case(
        place, samples.torch_saved(odd[kind]), f"container {kind}: all", "accept" if kind == "ordered" else "refuse"
    )


def _names(rng: random.Random, place: Path) -> Case:
    """Tensors under other names."""
    state: dict[Any, Any] = dict(samples.gpt2())
    name = rng.choice(sorted(state))
    odd: tuple[Any, ...] = (1, 1.5, None, True, b"wte", (1, 2), *(word for word in values.WORDS if "\ud800" not in word))
    layers = (
        "h.2.ln_1.weight",
        "h.1000000000.attn.c_attn.weight",
        "h.٣.attn.c_attn.weight",
        "h.-1.x",
        "h.5000.attn.c_attn.weight",
    )
    others = (
        "x.wte.weight",
        "lm_head.weight",
        "transformer.lm_head.weight",
        "h.0.attn.bias",
        "h.0.attn.masked_bias",
        "wte.weight.",
    )
    kind = rng.choice(("renamed", "added", "missing", "prefix", "swapped", "all prefixed", "no unembedding", "case"))
    new = rng.choice((*odd, *layers, *others))
    if kind == "renamed":
        state[new] = state.pop(name)
    elif kind == "added":
        state[new] = state[name].clone()
    elif kind == "missing":
        del state[name]
    elif kind == "prefix":
        state[f"transformer.{name}"] = state.pop(name)
    elif kind == "swapped":
        other = rng.choice(sorted(state))
        state[name], state[other] = state[other], state[name]
    elif kind == "all prefixed":
        state = {f"{new}.{key}": one for key, one in state.items()}
    elif kind == "no unembedding":
        del state["lm_head.weight"]
    else:
        state[name.upper()] = state.pop(name)
    return _case(place, samples.torch_saved(state), f"name {kind}: {name} {new!r:.30}")


def _odd_file(rng: random.Random, place: Path) -> Case:
    """No checkpoint at all."""
    path = place / "x.pt"
    if rng.random() < 0.6:
        path.touch()
        return Case(values.no_file(rng, path), _WORDS, must="refuse")
    odd = {
        "a text": b"hello\n",
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "noise": rng.randbytes(5000),
        "an empty zip": b"PK\x05\x06" + bytes(18),
        "a safetensors file": safetensors.torch.save(samples.gpt2()),
        "json": b'{"a": 1}',
    }
    kind = rng.choice(sorted(odd))
    return _case(place, odd[kind], f"{kind}: file", "refuse")


def _folder(rng: random.Random, place: Path) -> Case:
    """What save_pretrained writes, its config.json or its files damaged."""
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-05,
        "n_head": 2,
        "n_embd": samples.WIDTH,
        "n_layer": samples.LAYERS,
        "n_positions": samples.TASK.n_positions + 1,
        "vocab_size": samples.TASK.d_vocab,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        "model_type": "gpt2",
    }
    folder = place / "f"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(samples.gpt2()))
    if rng.random() < 0.2:
        what = values.no_file(rng, folder / rng.choice(("config.json", "model.safetensors")))
    elif rng.random() < 0.3:
        name = rng.choice(sorted(set(config) - {"n_embd", "model_type"}))
        changed = config | {name: values.odd(rng)}
        (folder / "config.json").write_bytes(values.text_of(rng, changed))
        what = f"value: {name}"
    else:
        data, what = values.mutate_json(rng, (folder / "config.json").read_bytes())
        (folder / "config.json").write_bytes(data)
    words = ("import", "f", "--out", "new", "--letters", "12", "--max-hops", "4")
    return Case(f"folder {what}", words, makes=("new",), wrong=lambda outcome: _finite(weights_at(outcome.place / "new")))
