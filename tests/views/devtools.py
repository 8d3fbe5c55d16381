"""Chromium by its DevTools protocol over a pipe: a page at a phone's width, in the dark, or as print sees it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FREE = 10  # above the two descriptors that Chromium reads from and writes to


class Screen:
    """One tab."""

    def __init__(self, commands: int, replies: int) -> None:
        self.commands, self.replies = commands, replies
        self.count, self.session, self.read, self.events = 0, "", b"", set[str]()
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self("Page.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self.count += 1
        command = {"id": self.count, "method": method, "params": params}
        text = json.dumps(command | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        while text:
            text = text[os.write(self.commands, text) :]
        while (reply := self._next()).get("id") != self.count:
            self.events.add(reply.get("method", ""))
        assert "error" not in reply, reply
        return reply["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.read:
            more = os.read(self.replies, 2**20)
            assert more, "Chromium went away"
            self.read += more
        message, _, self.read = self.read.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int, *, dark: bool = False, media: str = "") -> None:
        """A page, loaded, at a width in CSS pixels, for a reader who prefers a scheme."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.prefer(dark, media)
        self.events.clear()
        self("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self.events:
            self.events.add(self._next().get("method", ""))

    def prefer(self, dark: bool, media: str = "") -> None:
        """What the reader prefers, and on which medium the page is shown ("": the screen)."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", media=media, features=[feature])

    def run(self, script: str) -> Any:
        """What a script returns; the page's security policy does not hold for it."""
        call = f"(async () => {{ {script} }})()"
        found = self("Runtime.evaluate", expression=call, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Screen]:
    """A tab of a browser of its own, without a network, that is gone afterwards."""
    pairs = [[fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _FREE) for end in os.pipe()] for _ in range(2)]
    (theirs_in, commands), (replies, theirs_out) = pairs
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
    arguments += ["--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4)]
    actions += [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    child = os.posix_spawn(program, [program, *arguments], os.environ, file_actions=actions)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Screen(commands, replies)
    finally:
        os.close(commands)  # without it the browser ends
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        os.close(replies)
