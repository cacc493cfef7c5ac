"""Django: ``nats``, made from ``settings.NATS`` at its first use. Handlers leave no stale database
connection behind.

When the connection begins, and who waits for it, is decided in ``gnats.wsgi``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections

import gnats
import gnats.wsgi

__all__ = ["Nats", "nats"]


class Nats(gnats.wsgi.Nats):
    """``gnats.wsgi.Nats`` with the settings of the project.

    ::

        NATS = {"SERVERS": "nats://127.0.0.1:4222", "OPTIONS": {"connect_wait": 1.0}}

    ``OPTIONS`` are all other arguments of ``gnats.wsgi.Nats``. They are read at the first use,
    which raises ImproperlyConfigured when they are wrong.
    """

    def __init__(self) -> None:
        self._prepare()

    @property
    def is_bound(self) -> bool:
        """Always: the settings are there when they are needed."""
        return True

    def _bind(self) -> None:
        given = getattr(settings, "NATS", None)
        if not isinstance(given, dict):
            raise ImproperlyConfigured(
                "settings.NATS is needed, such as {'SERVERS': 'nats://127.0.0.1:4222'}"
            )
        if unknown := set(given) - {"SERVERS", "OPTIONS"}:
            raise ImproperlyConfigured(
                f"settings.NATS has SERVERS and OPTIONS, not {', '.join(sorted(map(str, unknown)))}"
            )
        try:
            self.configure(given.get("SERVERS"), **given.get("OPTIONS", {}))
        except (gnats.errors.Error, TypeError) as exc:
            raise ImproperlyConfigured(f"settings.NATS: {exc}") from exc

    def _surround(self, around: gnats.wsgi.Around | None) -> gnats.wsgi.Around:
        def with_fresh_databases(msg: gnats.Msg, handle: Callable[[], Any]) -> None:
            close_old_connections()
            try:
                gnats.wsgi.handle_within(around, msg, handle)
            finally:
                close_old_connections()

        return with_fresh_databases


#: The one of the project.
nats = Nats()
