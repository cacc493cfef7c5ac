"""Who we say we are: credentials to CONNECT fields. Pure, but for the callables a user gave.

Credentials in a server's URL win over the options. Each option may be a callable, asked anew
at every attempt, so that a rotated secret works without a restart. Room for nkeys, JWTs and
.creds files: they sign the server's nonce here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import OptionError
from .options import Secret
from .url import ServerURL


@dataclass(frozen=True)
class Credentials:
    """What the options say; never shown."""

    user: Secret = field(default=None, repr=False)
    password: Secret = field(default=None, repr=False)
    token: Secret = field(default=None, repr=False)

    def connect_fields(self, url: ServerURL) -> dict[str, str]:
        """The CONNECT fields for the server at *url*.

        Calls the user's callables, which may switch greenlets; raises what they raise, and
        OptionError when one does not return a str.
        """
        if url.has_credentials:
            return _fields(url.user, url.password, url.token)
        return _fields(
            _ask("user", self.user),
            _ask("password", self.password),
            _ask("token", self.token),
        )


def _fields(user: str | None, password: str | None, token: str | None) -> dict[str, str]:
    named = {"user": user, "pass": password, "auth_token": token}
    return {name: value for name, value in named.items() if value is not None}


def _ask(name: str, secret: Secret) -> str | None:
    if secret is None or isinstance(secret, str):
        return secret
    value = secret()
    if not isinstance(value, str):
        raise OptionError(name, f"its callable must return a str, not {type(value).__name__}")
    return value
