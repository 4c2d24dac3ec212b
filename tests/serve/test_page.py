"""The page at / in a browser."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

import raydkm
from raydkm.serve.app import create_app
from raydkm.serve.client import Client
from raydkm.serve.service import Service
from raydkm.serve.settings import ServeConfig
from raydkm.serve.tokens import Tokens
from tests.serve.conftest import Running, over_http

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def test_the_page_loads_nothing_from_elsewhere(service: Running) -> None:
    status, reply, headers = service.send("GET", "/", token=None)
    assert status == 200
    for rule in ("default-src", "frame-ancestors", "base-uri", "form-action"):
        assert f"{rule} 'none'" in headers["Content-Security-Policy"]
    assert b"//cdn" not in reply["text"]
    assert b" src=" not in reply["text"]


def browse(place: Path, url: str, *options: str) -> str:
    """What Chromium prints of a page."""
    always = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--window-size=1000,1000"]
    command = [str(CHROMIUM), *always, f"--user-data-dir={place / 'profile'}", *options, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@needs_chromium
def test_the_page_asks_for_a_token(service: Running, tmp_path: Path) -> None:
    assert "a token is needed" in browse(tmp_path, service.url, "--dump-dom")


@pytest.fixture
def without_tokens(models: Path) -> Iterator[str]:
    """The same application in this process, with no Ray around it, which has no tokens."""
    service = Service(ServeConfig())
    asyncio.run(service.configure(str(models / "first")))
    with over_http(create_app(service, Tokens())) as url:
        yield url


@needs_chromium
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_shows_the_report(without_tokens: str, models: Path, tmp_path: Path, theme: str) -> None:
    model = raydkm.load(models / "first")
    options = ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
    shown = browse(tmp_path, without_tokens, "--dump-dom", *options)
    assert model.checksum()[:16] in shown
    assert shown.count("<rect ") == model.clusters
    for fact in ("sr-kmeans", "equal shares", "Try a vector"):
        assert fact in shown
    image = tmp_path / "page.png"
    browse(tmp_path, without_tokens, f"--screenshot={image}", *options)
    assert image.read_bytes().startswith(b"\x89PNG")


class Tab:
    """A page in Chromium, driven by its DevTools protocol."""

    def __init__(self, connection: Any):
        self._connection, self._number = connection, 0
        self._session: dict[str, str] = {}  # that of the browser itself
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters, **self._session}))
        while True:
            answer = json.loads(self._connection.recv(timeout=30))
            if answer.get("id") == self._number:
                return answer["result"]

    def open(self, url: str) -> None:
        self._call("Page.enable")
        self._call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a script, which may be a promise."""
        found = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Return when a condition, looked at with each frame, holds."""
        self.run(f"new Promise(done => {{ const look = () => {condition} ? done() : setTimeout(look, 10); look() }})")

    def screenshot(self, path: Path) -> None:
        content = self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(content))


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += ["--window-size=1000,1300", f"--user-data-dir={tmp_path / 'profile'}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as browser:
        assert browser.stderr is not None
        found = (re.search(r"DevTools listening on (ws://\S+)", line) for line in browser.stderr)
        with connect(next(match for match in found if match)[1], max_size=None) as connection:
            yield Tab(connection)
        browser.terminate()


@needs_chromium
def test_a_vector_is_tried(without_tokens: str, models: Path, tab: Tab, tmp_path: Path) -> None:
    vector = raydkm.load(models / "first").cluster_centers[7]
    tab.open(without_tokens)
    tab.until("document.readyState == 'complete' && document.querySelectorAll('#sizes rect').length == 12")
    tab.run(f"document.getElementById('vector').value = '{', '.join(map(str, vector))}'")
    tab.run("document.querySelector('#try button').click()")
    tab.until("document.querySelector('#answer table, #answer .bad')")
    with Client(without_tokens) as client:
        expected = client.assign([vector], top=5)
    assert expected.clusters[0, 0] == 7
    assert "Cluster 7, at distance" in tab.run("document.getElementById('answer').textContent")
    rows = "[...document.querySelectorAll('#answer tr')].slice(1).map(row => row.cells[0].textContent)"
    assert tab.run(rows) == [str(k) for k in expected.clusters[0]]
    assert tab.run("document.querySelector('#sizes .found title').textContent").startswith("cluster 7:")
    tab.screenshot(tmp_path / "tried.png")
    tab.run("document.getElementById('vector').value = '1, 2'")
    tab.run("document.querySelector('#try button').click()")
    tab.until("document.querySelector('#answer .bad')")
    assert "2 dimensions, the model has 4" in tab.run("document.getElementById('answer').textContent")


@needs_chromium
def test_the_page_of_very_many_clusters(without_tokens: str, tab: Tab) -> None:
    tab.open(without_tokens)
    tab.until("document.querySelectorAll('#sizes rect').length == 12")
    tab.run("ask = async () => ({...report, clusters: 300000, counts: Array(300000).fill(2)}); show()")
    assert tab.run("document.getElementById('failed').hidden")
    assert tab.run("document.querySelectorAll('#sizes rect').length") == 400
