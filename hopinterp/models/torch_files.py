"""Files that `torch.save` wrote, checked before anything of them is unpickled: checksums, sizes, and what they name."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hopinterp.errors import HopInterpError

_CALLED = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
_NAMED = re.compile(r"torch (\w+Storage|Size|b?float(16|32|64)|u?int(8|16|32|64)|bool)|torch\.nn\.parameter Parameter")
"""What a pickle of tensors, numbers and words may call, and name. torch's own list is longer, and calls what it names:
a storage of a million million numbers, say."""
_MARK = "("
_LARGEST_PICKLE = 16 * 2**20
_SHARED = 2  # tensors may share memory, as a tied unembedding does: together at most so many times the file


def unpack(data: bytes, path: Path) -> Any:
    """What a file holds: tensors, on the CPU, in mappings and sequences with numbers and words.

    Args:
        path: named in errors.

    Raises:
        HopInterpError: it is not of torch's zip format, a part's checksum is wrong, it names more than tensors, its tensors
            say that they are larger than they are, or it is damaged in any other way.
    """
    _check_zip(data, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on foreign pickles before it refuses them
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise HopInterpError(f"{path} holds more than tensors, or is damaged; save model.state_dict() alone") from None
    except Exception as error:  # torch.load raises a dozen kinds on what is not its own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise HopInterpError(f"{path} is damaged ({reason})") from None
    size = sum(_bytes(tensor, path) for tensor in _tensors(found))
    if size > _SHARED * len(data):
        raise HopInterpError(f"{path} has {len(data):,} bytes; its tensors would take {size:,}")
    return found


def _check_zip(data: bytes, path: Path) -> None:
    """Raise HopInterpError unless every part is stored as it is, has its checksum, and names nothing but tensors."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise HopInterpError(f"{path} is a compressed zip, which torch.save never writes")
            if sum(part.file_size for part in parts) > len(data):
                raise HopInterpError(f"{path} is a zip whose parts are larger than it")
            if (damaged := archive.testzip()) is not None:
                raise HopInterpError(f"{path} is damaged: the checksum of its part {damaged!r:.80} is wrong")
            pickles = [part for part in parts if part.filename.endswith("data.pkl")]
            if len(pickles) != 1:
                raise HopInterpError(f"{path} is a zip, but not one of torch.save")
            if pickles[0].file_size > _LARGEST_PICKLE:
                raise HopInterpError(f"{path} lists more than any model has")
            _check_names(archive.read(pickles[0]), path)
    except HopInterpError:
        raise
    except zipfile.BadZipFile:
        old = "in torch's format of before 2020, which has no checksums (load it, and torch.save it again)"
        raise HopInterpError(f"{path} is no checkpoint, is truncated, or is {old}") from None
    except Exception as error:  # zipfile and pickletools raise several kinds on what is damaged
        raise HopInterpError(f"{path} is damaged ({type(error).__name__})") from None


def _check_names(data: bytes, path: Path) -> None:
    """Follow a pickle's stack, as far as names go, without making anything of it."""

    def refuse(name: object) -> HopInterpError:
        return HopInterpError(f"{path} holds more than tensors ({str(name)[:80]!r}); save model.state_dict() alone")

    stack: list[str] = []
    memo: dict[Any, str] = {}
    for operation, argument, _ in pickletools.genops(data):
        name, before, after = operation.name, operation.stack_before, operation.stack_after
        if name == "GLOBAL":
            if argument not in _CALLED and not _NAMED.fullmatch(str(argument)):
                raise refuse(argument)
            stack.append(str(argument))
        elif name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise refuse(name)
        elif name == "REDUCE":
            del stack[-1]
            if (called := stack.pop()) not in _CALLED:
                raise refuse(called)
            stack.append("")
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            if pickletools.markobject in before:
                while stack.pop() != _MARK:
                    pass
                before = before[: before.index(pickletools.markobject)]
            del stack[len(stack) - len(before) :]
            stack += [_MARK if name == "MARK" else ""] * len(after)


def _tensors(found: Any) -> list[Tensor]:
    """Every tensor in nested mappings and sequences, each container once."""
    tensors, todo, seen = [], [found], set()
    while todo:
        one = todo.pop()
        if isinstance(one, Tensor):
            tensors.append(one)
        elif isinstance(one, Mapping | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            todo += one.values() if isinstance(one, Mapping) else one
    return tensors


def _bytes(tensor: Tensor, path: Path) -> int:
    """The size of a tensor. Raises HopInterpError where it is none of plain numbers in memory, each in its own place."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_neg():
        raise HopInterpError(f"{path} holds a tensor that is not of plain numbers")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise HopInterpError(f"{path} holds a tensor of shape {list(tensor.shape)} in less memory than that takes")
    return size
