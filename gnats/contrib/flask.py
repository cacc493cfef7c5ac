"""Flask: the settings come from ``app.config``, handlers run in an application context.

When the connection begins, and who waits for it, is decided in ``gnats.wsgi``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import gnats
import gnats.wsgi

__all__ = ["Nats"]


class App(Protocol):
    """What is needed of a Flask app."""

    config: Any
    extensions: dict[str, Any]

    def app_context(self) -> AbstractContextManager[Any]: ...  # pragma: no cover


class Nats(gnats.wsgi.Nats):
    """``gnats.wsgi.Nats`` as an extension of Flask.

    ::

        nats = Nats()

        @nats.subscription("orders.*", queue="workers")
        def handle(msg): ...  # current_app is there

        def create_app():
            app = Flask(__name__)
            app.config["NATS_SERVERS"] = "nats://127.0.0.1:4222"
            nats.init_app(app)
            return app

    ``NATS_SERVERS`` is as ``servers``, ``NATS_OPTIONS`` a dict of all other arguments of
    ``gnats.wsgi.Nats``. Settings given here are defaults, which the config overrides.
    """

    def __init__(self, app: App | None = None, **settings: Any) -> None:
        self._prepare()
        self._defaults = settings
        self._settings: dict[str, Any] = {}
        self._app: App | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: App) -> None:
        """Take the settings of *app*, and run handlers in its context. Never switches.

        A second app may take the place of the first one: a test makes many. Raises what
        ``gnats.wsgi.Nats`` raises, and Error when the connection is in use with other settings.
        """
        if not hasattr(app, "app_context"):
            raise TypeError(
                f"a Flask app is needed, not {type(app).__name__}; servers go into "
                "servers=, or into app.config['NATS_SERVERS']"
            )
        settings = _settings(app, self._defaults)
        if self._conn is None or self._conn.is_closed or settings != self._settings:
            self.configure(**settings)
            self._settings = settings
        self._app = app
        app.extensions["nats"] = self

    def _bind(self) -> None:
        raise gnats.errors.Error("this Nats has no app yet: call init_app(app) first")

    def _surround(self, around: gnats.wsgi.Around | None) -> gnats.wsgi.Around:
        def in_app_context(msg: gnats.Msg, handle: Callable[[], Any]) -> None:
            assert self._app is not None  # or there would be no connection
            with self._app.app_context():
                gnats.wsgi.handle_within(around, msg, handle)

        return in_app_context


def _settings(app: App, defaults: dict[str, Any]) -> dict[str, Any]:
    options = app.config.get("NATS_OPTIONS") or {}
    if not isinstance(options, dict):
        raise gnats.errors.OptionTypeError(
            "NATS_OPTIONS", f"a dict is needed, not {type(options).__name__}"
        )
    settings = {**defaults, **options}
    if app.config.get("NATS_SERVERS") is not None:
        settings["servers"] = app.config["NATS_SERVERS"]
    return settings
