"""Commands in processes of their own, forked where everything is imported already; and disks that fail at a chosen call.

`python -m tests.robustness.faults` is what they are forked from: it reads a request a line and answers in a line.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import gc
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


# -- disks that fail --------------------------------------------------------------------------------------------------

SPACE = {"open", "write", "fsync", "mkdir", "rename", "replace"}
"""Calls that a full disk refuses."""
OPENED = {"write", "fsync"}
"""Calls on what is open: a disk that turns read-only fails them in another way."""


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th call that would change the disk, counted from 0.

    Attributes:
        how: kill (half of a write, and then no more), SIGTERM or SIGINT (the call goes on), full (from then on, for what
            takes space), read-only (from then on), once (an error of the device, this once).
    """

    at: int
    how: str


class Disk:
    """Python's own file-system calls that change something beneath a directory: counted, and one fails or is the last."""

    def __init__(self, root: str, fault: Fault | None) -> None:
        self.root, self.fault = os.path.realpath(root), fault
        self.calls: list[str] = []
        self.paths: dict[int, str] = {}  # of what is open
        self.pid = os.getpid()

    def meets(self, name: str, path: Any, half: Callable[[], object] = lambda: None) -> None:
        """A call is about to be made."""
        place = self._beneath(path)
        if place is None:
            return
        self.calls.append(name)
        fault, number = self.fault, len(self.calls) - 1
        if fault is None or number < fault.at:
            return
        if number == fault.at and fault.how.startswith("SIG"):
            os.kill(self.pid, getattr(signal, fault.how))
        elif number == fault.at and fault.how == "kill":
            half()
            os.kill(self.pid, signal.SIGKILL)
        elif number == fault.at and fault.how == "once":
            raise OSError(errno.EIO, os.strerror(errno.EIO), place)
        elif fault.how == "full" and name in SPACE:
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
        elif fault.how == "read-only":
            number = errno.EIO if name in OPENED else errno.EROFS
            raise OSError(number, os.strerror(number), place)

    def _beneath(self, path: Any) -> str | None:
        """The place of a path, or of what is open; None where it is not beneath the directory, or in another process."""
        place = os.path.abspath(os.fsdecode(path)) if not isinstance(path, int) else self.paths.get(path, "")
        return place if place.startswith(self.root) and os.getpid() == self.pid else None

    def install(self) -> None:
        """Put it between Python and the disk, for good."""
        for name in ("mkdir", "unlink", "remove", "rmdir", "rename", "replace", "symlink", "link", "truncate"):
            setattr(os, name, self._call(name, getattr(os, name)))
        self._handles(lambda flags: bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)))
        real_fsync = os.fsync

        def fsync(handle: int) -> None:
            self.meets("fsync", handle)
            real_fsync(handle)

        setattr(os, "fsync", fsync)  # noqa: B010 (mypy would ask for the very signature)
        builtins.open = io.open = self._opens(builtins.open, self._file(), writing=True)

    def _handles(self, met: Callable[[int], bool]) -> None:
        """Stand in for `os.open`, which is met where its flags say so, and `os.close`: what is open is known by its path."""
        real_open, real_close = os.open, os.close

        def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            place = self._place(path, dir_fd)
            if met(flags):
                self.meets("open", place)
            handle = real_open(path, flags, mode, dir_fd=dir_fd)
            self.paths[handle] = place
            return handle

        def close(handle: int) -> None:
            self.paths.pop(handle, None)
            real_close(handle)

        for name, call in (("open", open_), ("close", close)):
            setattr(os, name, call)

    def _place(self, path: Any, dir_fd: int | None) -> str:
        beneath = self.paths.get(dir_fd, "") if dir_fd is not None else ""
        return os.path.abspath(os.path.join(beneath, os.fsdecode(path)))

    def _call(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *others: Any, **settings: Any) -> Any:
            self.meets(name, self._place(path, settings.get("dir_fd", settings.get("src_dir_fd"))))
            return real(path, *others, **settings)

        return call

    def _file(self) -> type[io.FileIO]:
        disk = self

        class File(io.FileIO):
            """A file whose writes are met one by one."""

            def write(self, data: Any) -> int:
                disk.meets("write", self.fileno(), lambda: super(File, self).write(bytes(data)[: len(bytes(data)) // 2]))
                return super().write(data)

            def close(self) -> None:
                if not self.closed and self.closefd:
                    disk.paths.pop(self.fileno(), None)
                super().close()

        return File

    def _opens(self, real: Callable[..., Any], met: type[io.FileIO], *, writing: bool) -> Callable[..., Any]:
        """What stands in for `open`: files that are written, or that are only read, are of a class whose calls are met."""

        def open_(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if bool(set(mode) & set("wax+")) != writing:
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if not isinstance(file, int):
                self.meets("open", file)
            raw = met(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            self.paths[raw.fileno()] = self.paths.get(file, "") if isinstance(file, int) else os.path.abspath(file)
            wraps = io.BufferedRandom if "+" in mode else io.BufferedWriter if writing else io.BufferedReader
            buffered: Any = wraps(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        return open_


# -- the process that others are forked from --------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A command to run.

    Attributes:
        words: as typed after `hopinterp`; or a function of `TASKS` below and its arguments.
        cwd: where it runs.
        fault: on the disk beneath `cwd`.
        counted: whether to tell the calls that it made to that disk.
        reads: the fault is met by calls that read, not by those that change something, and these are counted.
        encoding: of standard output and error.
        ignored: signals that are ignored, as by nohup.
        out: a file that standard output goes to in the place of a temporary one.
        offline: no socket may be connected, except to this machine by name of a file.
        quick: what is known already of one small model (its program, its verdict, its page) is not computed again.
        before: Python to run first.
    """

    words: tuple[str, ...]
    cwd: str
    fault: Fault | None = None
    counted: bool = False
    reads: bool = False
    encoding: str = "utf-8"
    ignored: tuple[str, ...] = ()
    out: str = ""
    offline: bool = False
    quick: bool = False
    before: str = ""


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
        status: as subprocess has it: less than 0 where a signal ended it.
        calls: that it made to the disk, if they were counted.
    """

    status: int
    out: str
    err: str
    calls: tuple[str, ...] = ()
    peak: int = 0


@dataclass
class Running:
    """A command under way."""

    pid: int
    server: Server
    _done: Done | None = None

    def signal(self, name: str) -> None:
        """Send it a signal."""
        if self._done is None:
            os.kill(self.pid, getattr(signal, name))

    @property
    def alive(self) -> bool:
        """Whether it runs still."""
        return self._done is None and bool(self.server.ask({"alive": self.pid}))

    def wait(self) -> Done:
        """Until it has ended."""
        if self._done is None:
            answer = self.server.ask({"wait": self.pid})
            self._done = Done(**answer | {"calls": tuple(answer["calls"])})
        return self._done


@dataclass
class Server:
    """Starts commands in processes of their own, without the seconds that imports take."""

    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        words = [sys.executable, "-m", "tests.robustness.faults"]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        settings = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "CUDA_VISIBLE_DEVICES": ""}
        settings["HOPINTERP_CACHE"] = "off"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(words, cwd=ROOT, env=settings, start_new_session=True, **pipes)

    def ask(self, request: dict[str, Any]) -> Any:
        """An answer of the process that forks."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *words: Any, cwd: Path, **settings: Any) -> Running:
        """Start a command."""
        request = Request(tuple(map(str, words)), str(cwd), **settings)
        return Running(self.ask({"start": asdict(request)}), self)

    def run(self, *words: Any, cwd: Path, **settings: Any) -> Done:
        """Run a command to its end."""
        return self.start(*words, cwd=cwd, **settings).wait()

    def close(self) -> None:
        """End the process and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A server, ended at the end."""
    made = Server()
    try:
        yield made
    finally:
        made.close()


# -- inside that process ----------------------------------------------------------------------------------------------

TASKS: dict[str, Callable[..., None]] = {}
"""What is run for words that begin with a colon: what the command cannot do, and Python can."""


def _gpt2(path: str) -> None:
    """A small GPT-2's state dict, as `import` takes it."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # it remarks on the small vocabulary
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=12, n_positions=10, n_embd=16, n_layer=1, n_head=1)
    torch.save(transformers.GPT2Model(config).state_dict(), path)


def _load(what: str, path: str) -> None:
    """Read what was saved, and print it."""
    from hopinterp.decompile.decompilation import load_decompiled
    from hopinterp.judgement.records import load_verdict

    print({"verdict": load_verdict, "program": load_decompiled}[what](path))


TASKS |= {"gpt2": _gpt2, "load": _load, "nothing": lambda: None}


def _import_all() -> None:
    import torch
    import typer
    import typer.rich_utils

    torch.set_num_threads(1)

    import hopinterp.decompile.decompiled
    import hopinterp.evidence.patching.activation
    import hopinterp.evidence.transplants.interchange
    import hopinterp.judgement.verdict
    import hopinterp.models.gpt2
    import hopinterp.sweeps.sweep
    import hopinterp.training.loop
    import hopinterp.views.programs
    import hopinterp.views.report
    import hopinterp.views.statements
    import hopinterp.views.sweeps  # noqa: F401
    from hopinterp import cli

    typer.main.get_command = cache(typer.main.get_command)  # the parser is made once, not by each command anew
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        made = (
            "construct",
            "--hops",
            "1",
            "--algorithm",
            "sequential",
            "--letters",
            "12",
            "--alphabet",
            "3",
            "--max-hops",
            "2",
        )
        size = ("--layers", "1", "--d-model", "8", "--heads", "1", "--letters", "6", "--alphabet", "3", "--max-hops", "1")
        plan = ("--steps", "2", "--batch", "2", "--threads", "1")
        # what else is imported, and compiled, on the way
        for words in (
            (*made, "--out", f"{place}/m"),
            ("train", *size, *plan, "--out", f"{place}/r"),
            *(
                ("eval", f"{place}/m", "--sequences", "2", "--plot", f"{place}/p.{kind}")
                for kind in ("png", "svg", "pdf", "jpg")
            ),
        ):
            sys.argv = ["hopinterp", *words]
            with contextlib.suppress(SystemExit):
                cli.main()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _serve() -> None:
    _import_all()
    gc.disable()  # what it would touch, each child would copy
    gc.freeze()
    known = _Known()
    children: dict[int, tempfile.TemporaryDirectory[str]] = {}
    for line in sys.stdin:
        [(verb, value)] = json.loads(line).items()
        answer: Any
        if verb == "start":
            value["fault"] = value["fault"] and Fault(**value["fault"])
            request = Request(**value | {"words": tuple(value["words"]), "ignored": tuple(value["ignored"])})
            if request.quick:
                known.make()
            place = tempfile.TemporaryDirectory()
            pid = os.fork()
            if not pid:
                _child(request, Path(place.name), known)
            children[pid], answer = place, pid
        elif verb == "alive":
            answer = os.waitid(os.P_PID, value, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        else:
            _, status, used = os.wait4(value, 0)
            place = children.pop(value)
            answer = _done(os.waitstatus_to_exitcode(status), Path(place.name), used.ru_maxrss)
            place.cleanup()
        print(json.dumps(answer), flush=True)


def _done(status: int, place: Path, peak: int) -> dict[str, Any]:
    there = [name for name in ("out", "err") if (place / name).exists()]  # not yet where a signal came at once
    texts = {"out": "", "err": ""} | {
        name: (place / name).read_bytes().decode("utf-8", "backslashreplace") for name in there
    }
    calls = json.loads((place / "calls").read_text()) if (place / "calls").exists() else []
    return {"status": status, **texts, "calls": calls, "peak": peak}


def _child(request: Request, place: Path, known: _Known) -> None:
    """What a forked process does; it never returns."""
    from .unreadable import Unreadable

    status, disk = 1, (Unreadable if request.reads else Disk)(request.cwd, request.fault)
    note, leave = os.open(place / "calls.new", os.O_WRONLY | os.O_CREAT), os._exit
    rename = os.rename
    try:
        for number, name in ((1, request.out or place / "out"), (2, place / "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        (place / "out").touch()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding=request.encoding)
        # a command answers Ctrl-C itself: what comes before it is there ends without a word, as SIGTERM then does
        signal.signal(signal.SIGINT, signal.default_int_handler if request.words[0].startswith(":") else signal.SIG_DFL)
        for name in request.ignored:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        os.chdir(request.cwd)
        if request.quick:
            known.use()
        if request.offline:
            _go_offline()
        exec(request.before, {})
        if request.fault is not None or request.counted:
            disk.install()
        _run(request.words)
        status = 0
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        with contextlib.suppress(Exception):
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):  # as Python does when it ends
            try:
                stream.flush()
            except Exception:
                status = 120
        with contextlib.suppress(BaseException):
            os.write(note, json.dumps(disk.calls).encode())
            rename(place / "calls.new", place / "calls")
        leave(status)


def _run(words: tuple[str, ...]) -> None:
    from hopinterp import cli
    from hopinterp.errors import HopInterpError

    if not words[0].startswith(":"):
        sys.argv = ["hopinterp", *words]
        cli.main()
        return
    try:
        TASKS[words[0][1:]](*words[1:])
    except HopInterpError as error:
        print(f"hopinterp: {error}", file=sys.stderr)
        sys.exit(2)


class _Known:
    """A small model's program, verdict and page, computed once."""

    def __init__(self) -> None:
        self.verdict: Any = None

    def make(self) -> None:
        if self.verdict is not None:
            return
        from hopinterp.decompile import decompiled
        from hopinterp.judgement import verdict
        from hopinterp.task import HopTask
        from hopinterp.theory.construction import Construction
        from hopinterp.views import report

        task = HopTask(12, 3, 2)
        made = Construction.of(task, 1, "sequential").fused
        self.verdict = verdict.verify(made, task, 1, sequences=20)
        self.program = decompiled.decompile(made, task, 1, sequences=20)
        self.page = report.report(self.verdict, "m", made, task)

    def use(self) -> None:
        from hopinterp.decompile import decompiled
        from hopinterp.judgement import verdict
        from hopinterp.views import report

        found: Any = self
        verdict.verify = lambda *_, **__: found.verdict
        decompiled.decompile = lambda *_, **__: found.program
        report.report = lambda *_, **__: found.page
        few = {"behaviour": found.verdict.evidence["behaviour"]}  # a file or six: the same calls
        TASKS["save verdict"] = lambda where: replace(found.verdict, evidence=few).save(where)


def _go_offline() -> None:
    import socket

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            os.write(2, f"a socket was connected to {address}\n".encode())
            os._exit(99)

    def no_names(*names: Any, **_: Any) -> Any:
        os.write(2, f"a name was looked up: {names}\n".encode())
        os._exit(99)

    socket.socket.connect = socket.socket.connect_ex = refuse  # type: ignore[assignment,method-assign]
    socket.getaddrinfo = socket.gethostbyname = no_names


if __name__ == "__main__":
    assert threading.active_count() == 1
    _serve()
