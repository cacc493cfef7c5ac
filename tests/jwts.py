"""Operators, accounts, users and their seeds, made anew for each test run: test data, no secrets.

Source: ADR-14, the JWT library's claims. Only what a nats-server needs to admit a user.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from typing import Any

import nkeys

_PREFIX = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}


class Identity:
    """A key pair of one *kind*: operator, account or user."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.seed = bytes(nkeys.encode_seed(os.urandom(32), _PREFIX[kind]))
        self._pair = nkeys.from_seed(self.seed)
        self.public = bytes(self._pair.public_key).decode()

    def sign(self, data: bytes) -> bytes:
        return bytes(self._pair.sign(data))


def jwt(issuer: Identity, subject: Identity, lifetime: float | None = None, **nats: Any) -> str:
    """A JWT about *subject*; *lifetime* is in seconds, *nats* are its claims."""
    claims: dict[str, Any] = {
        "iat": int(time.time()),
        "iss": issuer.public,
        "sub": subject.public,
        "name": subject.kind,
        "nats": {"type": subject.kind, "version": 2, **nats},
    }
    if lifetime is not None:
        claims["exp"] = int(time.time() + lifetime)
    digest = hashlib.sha256(json.dumps(claims, sort_keys=True).encode()).digest()
    claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    parts = [_encoded({"typ": "JWT", "alg": "ed25519-nkey"}), _encoded(claims)]
    signature = issuer.sign(".".join(parts).encode())
    return ".".join([*parts, _base64(signature)])


def creds(user_jwt: str, seed: bytes) -> str:
    """The text of a .creds file."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "NKEY Seed printed below can be used to sign and prove identity.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )


class Realm:
    """An operator with one account, and the configuration of a server that trusts them."""

    def __init__(self, **limits: Any) -> None:
        self.operator, self.account = Identity("operator"), Identity("account")
        free = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
        self._limits = {**free, "wildcards": True, **limits}
        self._operator_jwt = jwt(self.operator, self.operator)
        self.issue()

    def issue(self, lifetime: float | None = None, **claims: Any) -> None:
        """Make the account's JWT anew: a server learns of it through its configuration."""
        self._account_jwt = jwt(
            self.operator, self.account, lifetime, limits=self._limits, **claims
        )

    @property
    def config(self) -> str:
        return (
            f"operator: {self._operator_jwt}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {self.account.public}: {self._account_jwt} }}"
        )

    def user(self, lifetime: float | None = None, **claims: Any) -> tuple[str, bytes]:
        """A new user's JWT and seed."""
        user = Identity("user")
        free: dict[str, Any] = {"subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
        return jwt(self.account, user, lifetime, **free, **claims), user.seed


def _encoded(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
