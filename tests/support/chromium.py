"""Headless Chromium driven over a pipe, in the protocol of its own developer tools."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATH = shutil.which("chromium")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


class Page:
    """A page of a browser of its own.

    Args:
        profile: New empty folder.
        width: Width of the window, pixels.
        dark: True for the dark colours.

    Attributes:
        requests: Addresses that the page has asked for.
        problems: Errors of its scripts and refusals of its policy.
    """

    def __init__(self, profile: Path, *, width: int = 1280, dark: bool = False) -> None:
        assert PATH is not None
        command, self._send = os.pipe()
        self._answers, answer = os.pipe()
        moved = {3: os.dup(command), 4: os.dup(answer)}

        def place() -> None:
            os.dup2(moved[3], 3)
            os.dup2(moved[4], 4)

        self._browser = subprocess.Popen(
            [PATH, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(3, 4, *moved.values()),
            preexec_fn=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (command, answer, *moved.values()):
            os.close(end)
        self._number = 0
        self._rest = b""
        self._session: str | None = None
        self.requests: list[str] = []
        self.problems: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = "dark" if dark else "light"
        self(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._browser.kill()
        self._browser.wait()
        os.close(self._send)
        os.close(self._answers)

    def __call__(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive(60)
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]

    def open(self, address: str) -> None:
        """Open an address."""
        self("Page.navigate", url=address)

    def value(self, script: str) -> Any:
        """Return the value of an expression."""
        result = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + seconds
        tried = f"(() => {{ try {{ return Boolean({condition}) }} catch {{ return false }} }})()"
        while not self.value(tried):  # while the page is loading, an element may be missing
            assert time.monotonic() < until, f"never true: {condition}; {self.problems}"
            time.sleep(0.05)

    def picture(self, path: Path) -> None:
        """Write a screenshot of the whole page."""
        found = self("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    def _receive(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], seconds)
            assert ready, "the browser does not answer"
            new = os.read(self._answers, 1 << 20)
            assert new, "the browser has ended"
            self._rest += new
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        self._note(found.get("method", ""), found.get("params", {}))
        return found

    def _note(self, method: str, about: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(
                str(about["exceptionDetails"].get("exception", {}).get("description"))
            )
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.problems.append(about["entry"]["text"])
