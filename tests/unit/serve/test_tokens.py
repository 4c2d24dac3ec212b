from __future__ import annotations

from pathlib import Path

import pytest

from raydkm.cli import main
from raydkm.errors import ConfigError
from raydkm.serve.errors import RefusalError
from raydkm.serve.settings import ServeAddress
from raydkm.serve.tokens import Tokens

USER, ADMIN = "u" * 16, "a" * 20


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    (tmp_path / "admin").write_text(f"\n{ADMIN}\n")
    return Tokens.from_environment(
        {"RAYDKM_TOKENS": f"{USER}, other-token-of-a-user", "RAYDKM_ADMIN_TOKENS_FILE": str(tmp_path / "admin")}
    )


@pytest.mark.parametrize("authorization", [f"Bearer {USER}", f"bearer  {ADMIN}", "Bearer other-token-of-a-user"])
def test_good_tokens(tokens: Tokens, authorization: str) -> None:
    tokens.check(authorization)


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", USER, f"Basic {USER}", f"Bearer {USER}x", "Bearer é"]
)
def test_other_tokens_are_refused(tokens: Tokens, authorization: str | None) -> None:
    with pytest.raises(RefusalError) as refused:
        tokens.check(authorization)
    assert refused.value.status == 401


def test_only_admins_reload(tokens: Tokens) -> None:
    tokens.check_admin(f"Bearer {ADMIN}")
    for who, header in ((tokens, f"Bearer {USER}"), (Tokens(), None)):
        with pytest.raises(RefusalError) as refused:
            who.check_admin(header)
        assert refused.value.status == 403


def test_the_tokens_themselves_are_not_kept(tokens: Tokens) -> None:
    assert USER not in repr(tokens)


@pytest.mark.parametrize(
    "environment",
    [
        {"RAYDKM_TOKENS": "short"},
        {"RAYDKM_TOKENS": f"{USER},{'é' * 20}"},  # headers carry ASCII: it would never match
        {"RAYDKM_TOKENS": "a token with spaces in it"},
        {"RAYDKM_ADMIN_TOKENS_FILE": "/no/such/file"},
    ],
)
def test_bad_configurations_of_tokens(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(environment))):
        Tokens.from_environment(environment)


def test_a_file_without_a_token_leaves_no_service_open(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n  \n")
    with pytest.raises(ConfigError, match="no token in"):
        Tokens.from_environment({"RAYDKM_TOKENS_FILE": str(tmp_path / "empty")})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("node", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert ServeAddress(host=host).is_loopback == loopback


def test_a_service_beyond_loopback_needs_tokens(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYDKM_TOKENS", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "model", "--host", "0.0.0.0"])
    assert ended.value.code == 2
    assert "--insecure" in capsys.readouterr().err
