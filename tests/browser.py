"""Chromium without a window, driven over a pipe by its DevTools protocol: what a page does in a real browser."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.waiting import until

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-extensions",
    "--no-first-run",
    "--mute-audio",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class PageFailed(Exception):
    """A script threw, or what was waited for did not come."""


class Browser:
    """One browser with one tab; `problems` are exceptions, errors of the console and breaches of the page's policy."""

    def __init__(self, width: int = 1400, height: int = 1000) -> None:
        self._size = width, height
        self.problems: list[str] = []
        self._numbers = itertools.count(1)
        self._replies: dict[int, dict[str, Any]] = {}
        self._rest = b""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _start(self, stack: ExitStack) -> None:
        profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        (theirs_in, self._write), (self._read, theirs_out) = os.pipe(), os.pipe()
        stack.callback(os.close, self._write)
        stack.callback(os.close, self._read)
        # The browser reads commands from descriptor 3 and writes replies to 4.
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "HOME": profile},
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.resize(*self._size)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while number not in self._replies:
            self._take()
        reply = self._replies.pop(number)
        if "error" in reply:
            raise PageFailed(f"{method}: {reply['error']['message']}")
        result: dict[str, Any] = reply["result"]
        return result

    def _take(self) -> None:
        chunk = os.read(self._read, 1 << 16)
        if not chunk:
            raise PageFailed("The browser went away.")
        *whole, self._rest = (self._rest + chunk).split(b"\0")
        for text in whole:
            self._note(json.loads(text))

    def _note(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._replies[message["id"]] = message
        elif message["method"] == "Runtime.exceptionThrown":
            told = message["params"]["exceptionDetails"]
            self.problems.append(told.get("exception", {}).get("description") or told["text"])
        elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.problems.append(message["params"]["entry"]["text"])

    def resize(self, width: int, height: int = 1000) -> None:
        """Give the window another size, in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, url: str) -> None:
        """Go to a page."""
        self.send("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Value of an expression, awaited."""
        told = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in told:
            raise PageFailed(told["exceptionDetails"].get("exception", {}).get("description", script))
        return told["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true; one that throws is not true yet. Fails with what the page shows."""
        try:
            until(lambda: self._is(script))
        except AssertionError:
            raise PageFailed(f"{script} is not true; the page shows: {self.run('document.body.innerText')}") from None

    def _is(self, script: str) -> bool:
        try:
            return bool(self.run(f"!!({script})"))
        except PageFailed:
            return False

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        code = {"Enter": 13, "Tab": 9}.get(key, 0)
        for kind in ("rawKeyDown", "char", "keyUp") if key == "Enter" else ("rawKeyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def type(self, text: str) -> None:
        """Type text where the focus is."""
        self.send("Input.insertText", text=text)

    def shot(self, file: Path, whole: bool = True, dark: bool = False) -> None:
        """Write a picture of the page as PNG."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))
