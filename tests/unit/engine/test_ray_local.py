"""What a cluster of raydkm's own listens on, and who reads its token."""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from ray._private import ray_constants
from torch.distributed import TCPStore

from raydkm.engine import ray_local as module


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_token_is_read_by_its_user_alone(home: Path) -> None:
    module._keep_token_private()
    token = home / ".ray" / "auth_token"
    assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    assert len(token.read_text()) >= 32
    before = token.read_text()
    module._keep_token_private()
    assert token.read_text() == before


def test_a_token_that_others_read_is_closed_to_them(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("of Ray")
    token.chmod(0o644)
    module._keep_token_private()
    assert (token.read_text(), mode(token)) == ("of Ray", 0o600)


def test_a_token_that_stays_open_is_warned_of(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.touch(0o644)
    token.chmod(0o644)

    def fails(*_: object) -> None:
        raise PermissionError("of another user")

    monkeypatch.setattr(Path, "chmod", fails)
    with caplog.at_level(logging.WARNING, "raydkm"):
        module._keep_token_private()
    assert "of another user" in caplog.text


def test_without_a_home_the_token_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    module._keep_token_private()
    assert len(os.environ["RAY_AUTH_TOKEN"]) >= 32


@pytest.mark.parametrize("given", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "x" * 32}])
def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch, home: Path, given: dict[str, str]) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    module._keep_token_private()
    assert not list(home.iterdir())


def test_what_is_set_for_the_start_is_taken_back() -> None:
    before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(module._LOOPBACK), signal.getsignal(signal.SIGHUP)
    with module._nodes_on_loopback(), module._hangup_ignored():
        assert not ray_constants.ENABLE_RAY_CLUSTER
        assert os.environ[module._LOOPBACK] == "0"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    after = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(module._LOOPBACK), signal.getsignal(signal.SIGHUP)
    assert after == before


def test_the_store_of_process_groups_listens_on_its_node_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    monkeypatch.setattr(module, "_stores", [])
    address, port = module._address_of_store()
    assert address == "127.0.0.2"
    with socket.socket() as other:  # the rest of the machine's addresses are free
        other.bind(("127.0.0.1", port))
    own = TCPStore(address, port, 1, True, timedelta(seconds=20), multi_tenant=True)  # as torch does in rank 0
    client = TCPStore(address, port, 1, False, timedelta(seconds=20))
    own.set("key", "value")
    assert client.get("key") == b"value"


@pytest.mark.parametrize(("mode", "warned"), [("TOKEN", False), ("DISABLED", True)])
def test_a_cluster_without_tokens_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str, warned: bool
) -> None:
    monkeypatch.setattr(module, "get_authentication_mode", lambda: getattr(module.AuthenticationMode, mode))
    with caplog.at_level(logging.WARNING, "raydkm"):
        module.warn_of_open_cluster("192.0.2.1:6379")
    assert ("192.0.2.1:6379 asks for no token" in caplog.text) == warned
