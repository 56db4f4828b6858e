"""A headless Chromium, driven through chromedriver's HTTP protocol (W3C WebDriver)."""

import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from base64 import b64decode
from typing import Any, Self

from tests.conftest import PATIENCE_S

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)
TAB, ENTER, ESCAPE = "\ue004", "\ue007", "\ue00c"


class Browser:
    """One window of one browser, with a profile of its own."""

    def __init__(self) -> None:
        self._profile = tempfile.mkdtemp(prefix="fs-browser-")
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
        )
        started = (re.search(r"on port (\d+)\.", line) for line in self._driver.stdout)
        self._base = f"http://127.0.0.1:{next(match for match in started if match)[1]}"
        wanted = {
            "goog:chromeOptions": {"args": [*FLAGS, f"--user-data-dir={self._profile}"]},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{session['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            return json.load(reply)["value"]

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """Return what the expression is in the page."""
        return self._call("POST", "/execute/sync", {"script": f"return {script}", "args": []})

    def text(self, selector: str) -> str:
        """Return the text of the first element; nothing when there is none."""
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def until(self, script: str) -> None:
        """Wait until the expression holds in the page."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.run(script):
            assert time.monotonic() < deadline, f"never: {script}; the page says {self.text('body')!r}"
            time.sleep(0.05)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, as a person does."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def resize(self, width: int, height: int) -> None:
        """Be a screen of that size, in CSS pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def screenshot(self) -> bytes:
        """Return what is to be seen, as a PNG."""
        return b64decode(self._call("GET", "/screenshot"))

    def complaints(self) -> list[str]:
        """Return the errors and warnings in the console since the last call."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in {"WARNING", "SEVERE"}]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call("DELETE", "")
        self._driver.terminate()
        self._driver.communicate()
        shutil.rmtree(self._profile, ignore_errors=True)
