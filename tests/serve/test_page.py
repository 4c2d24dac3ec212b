"""The page at / in a browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import Running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def test_the_page_loads_nothing_from_elsewhere(service: Running) -> None:
    status, reply, headers = service.send("GET", "/", token=None)
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"//cdn" not in reply["text"]
    assert b" src=" not in reply["text"]


@needs_chromium
def test_the_page_asks_for_a_token_and_is_drawn(service: Running, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--window-size=1000,900"]
    shown = subprocess.run(
        [str(CHROMIUM), *options, f"--user-data-dir={tmp_path}", "--dump-dom", service.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "a token is needed" in shown
    image = tmp_path / "page.png"
    subprocess.run(
        [str(CHROMIUM), *options, f"--user-data-dir={tmp_path}", f"--screenshot={image}", service.url],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert image.read_bytes().startswith(b"\x89PNG")
