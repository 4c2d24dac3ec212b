"""Bearer tokens: who may assign, and who may also reload.

They come from the environment where `raydkm serve` (or the builder of a Serve configuration) runs:

    RAYDKM_TOKENS, RAYDKM_ADMIN_TOKENS              tokens, separated by commas
    RAYDKM_TOKENS_FILE, RAYDKM_ADMIN_TOKENS_FILE    files with one a line

Only their SHA-256 go to the replicas, which compare in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raydkm.errors import ConfigError
from raydkm.serve.errors import RefusalError

SHORTEST = 16

#: Of the environment, those that hold tokens themselves.
TOKEN_VARIABLES = ("RAYDKM_TOKENS", "RAYDKM_ADMIN_TOKENS")


@dataclass(frozen=True)
class Tokens:
    """SHA-256 of the tokens, in hexadecimal. Those of `admin` may do all that those of `users` may."""

    users: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.users or self.admin)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Tokens:
        """Read the variables above; `ConfigError` on a file that cannot be read or a token too short."""
        return cls(_digests("RAYDKM_TOKENS", environment), _digests("RAYDKM_ADMIN_TOKENS", environment))

    def check(self, authorization: str | None) -> None:
        """Refuse a request without a token (401) where there are some."""
        if self and not _is_among(authorization, (*self.users, *self.admin)):
            reason = "no such token" if authorization else "a token is needed"
            raise RefusalError(
                401, f"{reason}: send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    def check_admin(self, authorization: str | None) -> None:
        """Refuse a request without an admin token, also where there are no tokens at all."""
        self.check(authorization)
        if not _is_among(authorization, self.admin):
            raise RefusalError(403, "an admin token is needed (RAYDKM_ADMIN_TOKENS of the service)")


def _digests(name: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    found = environment.get(name, "").split(",")
    if path := environment.get(f"{name}_FILE"):
        try:
            of_file = Path(path).read_text().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name}_FILE: {path} cannot be read ({error})") from None
        if not "".join(of_file).strip():
            raise ConfigError(f"{name}_FILE: there is no token in {path}")
        found += of_file
    tokens = [token.strip() for token in found if token.strip()]
    if any(len(token) < SHORTEST for token in tokens):
        raise ConfigError(f"{name}: a token of less than {SHORTEST} characters can be guessed; choose longer ones")
    if not all(re.fullmatch(r"[!-~]+", token) for token in tokens):
        raise ConfigError(f"{name}: no header carries this token; choose ASCII letters, digits and signs, no spaces")
    return tuple(hashlib.sha256(token.encode()).hexdigest() for token in tokens)


def _is_among(authorization: str | None, digests: tuple[str, ...]) -> bool:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    given = hashlib.sha256(token.strip().encode()).hexdigest()
    return sum(hmac.compare_digest(given, known) for known in digests) > 0  # all are compared
