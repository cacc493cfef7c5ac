"""gnats: the NATS client for cooperative Python. Greenlets, no asyncio.

Importing it starts nothing and touches no hub. ``connect`` is the way in.
"""

from . import errors
from ._version import __version__
from .connection import Connection, connect
from .forks import after_fork
from .headers import Headers
from .health import Health
from .info import ServerInfo
from .message import Msg
from .options import Callbacks, ConnectionOptions, ReconnectOptions, TLSOptions
from .stats import Stats
from .status import ConnectionStatus
from .subscription import Subscription
from .twin import compiled
from .url import ServerURL

__all__ = [
    "Callbacks",
    "Connection",
    "ConnectionOptions",
    "ConnectionStatus",
    "Headers",
    "Health",
    "Msg",
    "ReconnectOptions",
    "ServerInfo",
    "ServerURL",
    "Stats",
    "Subscription",
    "TLSOptions",
    "__version__",
    "after_fork",
    "compiled",
    "connect",
    "errors",
]
