"""The page at / in a browser."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import raydkm
from raydkm.serve.app import create_app
from raydkm.serve.service import Service
from raydkm.serve.settings import ServeConfig
from raydkm.serve.tokens import Tokens
from tests.serve.conftest import Running, over_http

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def test_the_page_loads_nothing_from_elsewhere(service: Running) -> None:
    status, reply, headers = service.send("GET", "/", token=None)
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
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
