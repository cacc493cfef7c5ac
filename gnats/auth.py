"""Who we say we are: credentials to CONNECT fields. No I/O but files and callables a user named.

Credentials in a server's URL win over the options. Every source is asked anew at every attempt,
files and callables alike, so that a rotated secret works without a restart. What was read is
dropped as soon as the server's nonce is signed. Source: client protocol page (CONNECT), ADR-14.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable
from typing import Any

from .errors import CredentialsError, MissingExtraError, NonceMissingError, OptionError
from .options import ConnectionOptions
from .url import ServerURL

# A marked section of a .creds file; the same marks may stand in a file with only one of the two.
_JWT = re.compile(rb"-+BEGIN NATS USER JWT-+\s*([A-Za-z0-9_.=-]+?)\s*-+END NATS USER JWT-+")
_SEED = re.compile(rb"-+BEGIN USER NKEY SEED-+\s*([A-Z2-7]+)\s*-+END USER NKEY SEED-+")
_MARK = "-----BEGIN"

Sign = Callable[[str], bytes]


class Credentials:
    """What the options say; never shown."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options

    def check(self) -> None:
        """Raise MissingExtraError, now and not at the first attempt, when nkeys are needed and
        the package for them is not there."""
        options = self._options
        if options.user_credentials or options.nkeys_seed or options.nkeys_seed_str:
            _nkeys()

    def connect_fields(self, url: ServerURL, nonce: str = "") -> dict[str, str]:
        """The CONNECT fields for the server at *url*, whose INFO has *nonce*.

        Reads the user's files and calls the user's callables, which may switch greenlets;
        raises what they raise, OptionError when one returns what it must not, CredentialsError
        when a file holds no credentials, and NonceMissingError when there is nothing to sign.
        """
        if url.has_credentials:
            return _fields(user=url.user, password=url.password, token=url.token)
        options = self._options
        if options.user_credentials is not None:
            return _jwt_fields(*_read_creds(options.user_credentials), nonce)
        if options.nkeys_seed is not None or options.nkeys_seed_str is not None:
            return _nkey_fields(_read_seed(options), nonce)
        if options.user_jwt_cb is not None:
            return _callback_fields(options.user_jwt_cb, options.signature_cb, nonce)
        return _fields(
            user=_ask("user", options.user),
            password=_ask("password", options.password),
            token=_ask("token", options.token),
        )

    def __repr__(self) -> str:
        return "<Credentials>"


def _fields(**named: str | None) -> dict[str, str]:
    names = {"user": "user", "password": "pass", "token": "auth_token"}
    return {names[name]: value for name, value in named.items() if value is not None}


# -- nkeys and JWTs ----------------------------------------------------------------------


def _jwt_fields(jwt: str, seed: bytearray, nonce: str) -> dict[str, str]:
    return {"jwt": jwt, "sig": _sign(seed, nonce)["sig"]}


def _nkey_fields(seed: bytearray, nonce: str) -> dict[str, str]:
    return _sign(seed, nonce)


def _sign(seed: bytearray, nonce: str) -> dict[str, str]:
    """The signature of *nonce* and the public key; *seed* is overwritten."""
    nkeys = _nkeys()
    try:
        pair = nkeys.from_seed(seed)
        public = bytes(pair.public_key).decode()
        signature = pair.sign(nonce.encode())
        pair.wipe()
    except Exception as exc:
        # The package's own messages may quote what it was given: no cause is kept.
        raise CredentialsError(
            f"the nkey seed cannot be used ({type(exc).__name__}): a user's seed begins with SU"
        ) from None
    finally:
        seed[:] = bytes(len(seed))
    if not nonce:
        raise NonceMissingError
    return {"nkey": public, "sig": base64.urlsafe_b64encode(signature).rstrip(b"=").decode()}


def _callback_fields(
    user_jwt_cb: Callable[[], Any], signature_cb: Callable[[str], Any] | None, nonce: str
) -> dict[str, str]:
    jwt = _text("user_jwt_cb", user_jwt_cb())
    if signature_cb is None:
        return {"jwt": jwt}  # a bearer token
    if not nonce:
        raise NonceMissingError
    signature = signature_cb(nonce)
    if isinstance(signature, (bytes, bytearray)) and len(signature) == 64:
        signature = base64.urlsafe_b64encode(signature).rstrip(b"=")  # as Ed25519 gives it
    return {"jwt": jwt, "sig": _text("signature_cb", signature)}


def _nkeys() -> Any:
    # Imported when the first seed is used: nobody else shall pay for it, or need it.
    try:
        import nkeys  # type: ignore[import-untyped,unused-ignore]
    except ImportError as exc:
        raise MissingExtraError("an nkey seed or a credentials file", "nkeys") from exc
    return nkeys


# -- where secrets come from -------------------------------------------------------------


def _ask(name: str, secret: Any) -> Any:
    """The value of an option, its callable asked."""
    if not callable(secret):
        return secret
    value = secret()
    if value is not None and not isinstance(value, (str, bytes, bytearray, tuple, os.PathLike)):
        raise OptionError(name, f"its callable must return a str, not {type(value).__name__}")
    if name in ("user", "password", "token") and not isinstance(value, str):
        raise OptionError(name, f"its callable must return a str, not {type(value).__name__}")
    return value


def _text(name: str, value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value).decode("ascii", "replace")
    if not isinstance(value, str):
        raise OptionError(name, f"it must return a str or bytes, not {type(value).__name__}")
    return value.strip()


def _read_creds(source: Any) -> tuple[str, bytearray]:
    """JWT and seed, from a .creds file, from its text, or from two files."""
    source = _ask("user_credentials", source)
    if isinstance(source, tuple) and len(source) == 2:
        jwt_source, seed_source = source
    else:
        jwt_source = seed_source = source
    jwt = _section("user_credentials", _read("user_credentials", jwt_source), _JWT, "JWT")
    seed = _section("user_credentials", _read("user_credentials", seed_source), _SEED, "nkey seed")
    return bytes(jwt).decode(), seed


def _read_seed(options: ConnectionOptions) -> bytearray:
    if options.nkeys_seed_str is not None:
        text = _ask("nkeys_seed_str", options.nkeys_seed_str)
        if not isinstance(text, (str, bytes, bytearray)):
            raise OptionError("nkeys_seed_str", f"a str is needed, not {type(text).__name__}")
        data = bytearray(text.encode() if isinstance(text, str) else text)
        return _section("nkeys_seed_str", data, _SEED, "nkey seed")
    path = _ask("nkeys_seed", options.nkeys_seed)
    return _section("nkeys_seed", _read("nkeys_seed", path), _SEED, "nkey seed")


def _read(option: str, source: Any) -> bytearray:
    if isinstance(source, str) and _MARK in source:
        return bytearray(source.encode())
    if not isinstance(source, (str, os.PathLike)):
        raise OptionError(option, f"a path is needed, not {type(source).__name__}")
    try:
        with open(source, "rb") as file:
            return bytearray(file.read())
    except OSError as exc:
        raise CredentialsError(f"{option}: {exc.strerror or exc} ({os.fspath(source)!r})") from None


def _section(option: str, data: bytearray, pattern: re.Pattern[bytes], what: str) -> bytearray:
    """The marked part of *data*, or all of it where nothing is marked; *data* is overwritten."""
    match = pattern.search(data)
    if match:
        found = bytearray(match[1])
    elif _MARK.encode() in data or not data.strip():
        found = bytearray()
    else:
        found = bytearray(data.strip())
    del match
    data[:] = bytes(len(data))
    if not found:
        raise CredentialsError(f"{option}: it holds no {what}")
    return found
