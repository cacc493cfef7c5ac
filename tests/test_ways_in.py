"""Every way in, each against a real server configured for it: connect, a wrong secret, a secret
that is rotated while the server is away, and a reconnect. docs/security.md shows the table.
"""

from __future__ import annotations

import base64
import copy
import pickle
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
import nkeys
import pytest
import trustme
from jwts import Identity, Realm, creds

import gnats
from gnats.errors import (
    AuthenticationExpiredError,
    AuthorizationError,
    CertificateError,
    MaxConnectionsError,
    NoServersError,
    TLSError,
    TransportError,
)
from gnats.testing import ChaosProxy, NatsServer, free_port, wait_until

FAST: dict[str, Any] = {
    "reconnect_wait": 0.02,
    "reconnect_jitter": 0.0,
    "reconnect_jitter_tls": 0.0,
    "max_reconnect": -1,
}


class Way:
    """One way in. ``generation`` names the secret that is good now; ``rotate`` makes the next."""

    #: What a server says to a wrong secret.
    refused: type[Exception] = AuthorizationError
    expect_info = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.generation = 1
        self.wrong = False
        self.prepare()

    def prepare(self) -> None:
        """Make the secrets of this generation; write the files that hold them."""

    def config(self) -> str:
        """The server's configuration."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """What the client is given, once: it must find a rotated secret by itself."""
        raise NotImplementedError

    def url(self, server: NatsServer) -> str:
        return server.url

    def rotate(self) -> None:
        self.generation += 1
        self.prepare()

    @property
    def secret(self) -> str:
        return f"wrong{self.generation}" if self.wrong else f"s3cret{self.generation}"

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)


class UserPassword(Way):
    def config(self) -> str:
        return f'authorization {{ user: "ada", password: "s3cret{self.generation}" }}'

    def options(self) -> dict[str, Any]:
        return {"user": "ada", "password": lambda: self.secret}


class Token(Way):
    def config(self) -> str:
        return f'authorization {{ token: "s3cret{self.generation}" }}'

    def options(self) -> dict[str, Any]:
        return {"token": lambda: self.secret}


class CredentialsInURL(UserPassword):
    """They win over the options. They cannot be rotated by themselves: set_servers() does it."""

    def options(self) -> dict[str, Any]:
        return {"user": "other", "password": "other"}

    def url(self, server: NatsServer) -> str:
        return server.url.replace("://", f"://ada:{self.secret}@")


class NoAuthUser(Way):
    def config(self) -> str:
        return 'accounts { A { users: [ { user: "guest", password: "x" } ] } }\nno_auth_user: guest'

    def options(self) -> dict[str, Any]:
        return {"user": "nobody", "password": "wrong"} if self.wrong else {}


class Nkey(Way):
    def prepare(self) -> None:
        self.identity = Identity("user")
        self.seed_file = self.file("user.nk", self._given().seed)

    def _given(self) -> Identity:
        return Identity("user") if self.wrong else self.identity

    def config(self) -> str:
        return f"authorization {{ users: [ {{ nkey: {self.identity.public} }} ] }}"

    def options(self) -> dict[str, Any]:
        return {"nkeys_seed_str": lambda: self._given().seed.decode()}


class NkeyFile(Nkey):
    def options(self) -> dict[str, Any]:
        if self.wrong:
            self.prepare_wrong()
        return {"nkeys_seed": self.seed_file}

    def prepare_wrong(self) -> None:
        self.file("user.nk", Identity("user").seed)


class CredsFile(Way):
    def prepare(self) -> None:
        self.realm = Realm()
        self.write(self.realm)

    def write(self, realm: Realm) -> None:
        self.jwt, self.seed = realm.user()
        self.file("user.creds", creds(self.jwt, self.seed))
        self.file("user.jwt", self.jwt)
        self.file("user.nk", self.seed)

    def config(self) -> str:
        return self.realm.config

    def path(self, name: str = "user.creds") -> str:
        if self.wrong:
            self.write(Realm())
        return str(self.folder / name)

    def options(self) -> dict[str, Any]:
        return {"user_credentials": self.path()}


class CredsText(CredsFile):
    def options(self) -> dict[str, Any]:
        return {"user_credentials": lambda: Path(self.path()).read_text()}


class CredsPair(CredsFile):
    def options(self) -> dict[str, Any]:
        return {"user_credentials": (self.path("user.jwt"), self.path("user.nk"))}


class JWTCallbacks(CredsFile):
    def options(self) -> dict[str, Any]:
        self.path()
        return {"user_jwt_cb": lambda: self.jwt.encode(), "signature_cb": self._sign}

    def _sign(self, nonce: str) -> bytes:
        signature: bytes = nkeys.from_seed(self.seed).sign(nonce.encode())
        return signature


class JWTCallbacksBase64(JWTCallbacks):
    """As nats-py's callbacks do."""

    def _sign(self, nonce: str) -> bytes:
        return base64.b64encode(super()._sign(nonce))


class BearerJWT(CredsFile):
    def write(self, realm: Realm) -> None:
        self.jwt, self.seed = realm.user(bearer_token=True)

    def options(self) -> dict[str, Any]:
        self.path()
        return {"user_jwt_cb": lambda: self.jwt}


class TLS(Way):
    """A rotated secret is here the server's certificate, from another authority."""

    refused = CertificateError
    server_options = ""

    def prepare(self) -> None:
        self.authority = trustme.CA()
        self.file("ca.pem", self.authority.cert_pem.bytes())
        server = self.authority.issue_cert("127.0.0.1", "localhost")
        self.file("server.pem", server.cert_chain_pems[0].bytes())
        self.file("server.key", server.private_key_pem.bytes())
        client = self.authority.issue_cert("client@example.com")
        self.file("client.pem", client.cert_chain_pems[0].bytes())
        self.file("client.key", client.private_key_pem.bytes())

    def config(self) -> str:
        return (
            f'tls {{ cert_file: "{self.folder}/server.pem", key_file: "{self.folder}/server.key", '
            f'ca_file: "{self.folder}/ca.pem", timeout: 5 {self.server_options} }}'
        )

    def options(self) -> dict[str, Any]:
        return {"tls": self.tls()}

    def tls(self, **fields: Any) -> gnats.TLSOptions:
        ca = self.folder / "ca.pem"
        if self.wrong:
            ca = Path(self.file("wrong.pem", trustme.CA().cert_pem.bytes()))
        return gnats.TLSOptions(ca=ca, **fields)


class TLSScheme(TLS):
    def url(self, server: NatsServer) -> str:
        return server.url.replace("nats://", "tls://")


class MutualTLS(TLS):
    refused = TLSError
    server_options = ", verify: true"

    def options(self) -> dict[str, Any]:
        if self.wrong:
            self.wrong = False
            return {"tls": self.tls()}  # no certificate of ours
        cert, key = self.folder / "client.pem", self.folder / "client.key"
        return {"tls": self.tls(cert=cert, key=key)}


class TLSHandshakeFirst(TLS):
    server_options = ", handshake_first: true"
    expect_info = False

    def options(self) -> dict[str, Any]:
        return {**super().options(), "tls_handshake_first": True}


class TLSAndToken(TLS):
    refused = AuthorizationError

    def config(self) -> str:
        return super().config() + f'\nauthorization {{ token: "s3cret{self.generation}" }}'

    def options(self) -> dict[str, Any]:
        return {"tls": gnats.TLSOptions(ca=self.folder / "ca.pem"), "token": lambda: self.secret}


class WS(Token):
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        super().__init__(folder)

    def config(self) -> str:
        return (
            f'{super().config()}\nwebsocket {{ port: {self.port}, host: "127.0.0.1", '
            "no_tls: true, compression: true }"
        )

    def url(self, server: NatsServer) -> str:
        return f"ws://127.0.0.1:{self.port}"


class WSPlain(WS):
    """Without compression, behind a path, with headers of its own."""

    def options(self) -> dict[str, Any]:
        headers = {"X-Trace": ["1", "2"]}
        return {**super().options(), "ws_compression": False, "ws_connection_headers": headers}

    def url(self, server: NatsServer) -> str:
        return f"ws://127.0.0.1:{self.port}/behind/a/proxy"


class WSS(TLS):
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        super().__init__(folder)

    def config(self) -> str:
        tls = TLS.config(self).replace(f'ca_file: "{self.folder}/ca.pem", ', "")
        return f'websocket {{ port: {self.port}, host: "127.0.0.1", {tls} }}'

    def url(self, server: NatsServer) -> str:
        return f"wss://localhost:{self.port}"


WAYS: list[type[Way]] = [
    UserPassword,
    Token,
    CredentialsInURL,
    NoAuthUser,
    Nkey,
    NkeyFile,
    CredsFile,
    CredsText,
    CredsPair,
    JWTCallbacks,
    JWTCallbacksBase64,
    BearerJWT,
    TLS,
    TLSScheme,
    MutualTLS,
    TLSHandshakeFirst,
    TLSAndToken,
    WS,
    WSPlain,
    WSS,
]


@pytest.fixture(params=WAYS, ids=lambda kind: kind.__name__)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    return request.param(tmp_path)  # type: ignore[no-any-return]


@pytest.fixture
def server(way: Way) -> Iterator[NatsServer]:
    with NatsServer(config=way.config(), expect_info=way.expect_info) as server:
        yield server


def works(conn: gnats.Connection) -> bool:
    with conn.subscribe("there.and.back") as sub:
        conn.publish("there.and.back", b"x" * 200_000)
        return sub.next_msg(10).data == b"x" * 200_000


def test_connect(way: Way, server: NatsServer) -> None:
    with gnats.connect(way.url(server), **FAST, **way.options()) as conn:
        assert works(conn)


def test_a_wrong_secret(way: Way, server: NatsServer) -> None:
    way.wrong = True
    with pytest.raises(NoServersError) as caught:
        gnats.connect(way.url(server), **FAST, **way.options())
    (failure,) = caught.value.failures.values()
    assert isinstance(failure, way.refused), repr(failure)
    for shown in (repr(failure), str(caught.value), repr(caught.value)):
        assert "wrong1" not in shown
        assert "SU" not in shown.replace("SUB", "")


def test_a_reconnect(way: Way, server: NatsServer) -> None:
    conn = gnats.connect(way.url(server), **FAST, **way.options())
    sub = conn.subscribe("kept")
    server.kill()
    conn.wait_for_status("reconnecting", 10)
    conn.publish("kept", b"over the outage")
    server.restart()
    assert sub.next_msg(10).data == b"over the outage"
    assert works(conn)
    conn.close()


def test_a_rotated_secret(way: Way, server: NatsServer) -> None:
    conn = gnats.connect(way.url(server), **FAST, **way.options(), ignore_auth_error_abort=True)
    sub = conn.subscribe("kept")
    server.kill()
    conn.wait_for_status("reconnecting", 10)
    way.rotate()
    server.config = way.config()
    if isinstance(way, CredentialsInURL):
        conn.set_servers(way.url(server))
    conn.publish("kept", b"with the new secret")
    server.restart()
    assert sub.next_msg(10).data == b"with the new secret"
    assert works(conn)
    conn.close()


def test_nothing_is_shown(way: Way, server: NatsServer) -> None:
    conn = gnats.connect(way.url(server), **FAST, **way.options())
    shown = " ".join(
        [
            *map(repr, (conn, conn.options, conn.connected_url, conn.servers, conn.server_info)),
            str(conn.connected_url),
        ]
    )
    for secret in ("s3cret", getattr(way, "jwt", "s3cret")):
        assert secret not in shown
    seed = getattr(way, "seed", None) or getattr(getattr(way, "identity", None), "seed", b"s3cret")
    assert seed.decode() not in shown
    conn.close()


@pytest.mark.parametrize("way", [TLS, WS, WSPlain, WSS], indirect=True, ids=lambda k: k.__name__)
@pytest.mark.parametrize("keep", [False, True], ids=["at most once", "at least once"])
def test_losses_keep_the_promise(
    way: Way, server: NatsServer, keep: bool, rng: random.Random
) -> None:
    """Links cut at random bytes of what is encrypted or framed. A torn TLS record was not read;
    of a torn WebSocket frame any part may have been."""
    options = {**FAST, **way.options()}
    port = urlsplit(way.url(server)).port
    with ChaosProxy(f"127.0.0.1:{port}") as proxy:
        reader = gnats.connect(way.url(server), **options)
        arrived: list[int] = []
        reader.subscribe("n", cb=lambda msg: arrived.append(int(msg.data[:8])))
        reader.flush()
        url = way.url(server).replace(f":{port}", f":{proxy.port}")
        conn = gnats.connect(url, replay_unconfirmed=keep, **options)
        count = 0
        for _ in range(12):
            conn.wait_for_status("connected", 10)
            losses = conn.stats.disconnects
            proxy.cut_after(rng.randrange(200_000), reset=rng.random() < 0.5)
            while conn.stats.disconnects == losses:
                for _ in range(20):
                    conn.publish("n", b"%08d" % count + rng.randbytes(rng.randrange(2000)))
                    count += 1
                gevent.sleep(0.0005)
        conn.wait_for_status("connected", 10)
        assert conn.flush(20)
        stats = conn.stats
        reader.flush()
        assert stats.accepted == stats.sent + stats.uncertain + stats.dropped + stats.buffered
        missing = count - len(set(arrived))
        if keep:
            assert missing == 0
            assert list(dict.fromkeys(arrived)) == list(range(count))
        else:
            assert len(arrived) == len(set(arrived))
            assert arrived == sorted(arrived)
            assert missing <= stats.uncertain
        conn.close()
        reader.close()


def test_nothing_is_pickled() -> None:
    for fields in (
        {"password": "s3cret", "user": "u"},
        {"token": "s3cret"},
        {"nkeys_seed_str": "SUsecret"},
        {"user_credentials": "a.creds"},
        {"servers": "nats://u:s3cret@h"},
    ):
        options = gnats.ConnectionOptions(**fields)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            pickle.dumps(options)
        assert copy.deepcopy(options) is options
    plain = gnats.ConnectionOptions(servers=["nats://h:1"], name="n")
    assert pickle.loads(pickle.dumps(plain)) == plain
    with pytest.raises(TypeError):
        pickle.dumps(gnats.TLSOptions(cert="a", key_password="s3cret"))
    assert pickle.loads(pickle.dumps(gnats.TLSOptions(ca="a"))) == gnats.TLSOptions(ca="a")


@pytest.mark.parametrize(
    ("config", "options", "failure"),
    [
        ("", {"tls": gnats.TLSOptions()}, gnats.errors.SecureConnWantedError),
        ("", {"nkeys_seed_str": Identity("user").seed.decode()}, gnats.errors.NonceMissingError),
        ("", {"user_credentials": "/no/such/file"}, gnats.errors.CredentialsError),
        ("", {"nkeys_seed_str": "SUAnonsense"}, gnats.errors.CredentialsError),
        ("", {"tls": gnats.TLSOptions(ca="/no/such/file")}, TransportError),
    ],
    ids=["no TLS there", "no nonce", "no file", "no seed", "no authority"],
)
def test_what_cannot_work_says_why(
    config: str, options: dict[str, Any], failure: type[Exception]
) -> None:
    with NatsServer(config=config) as server, pytest.raises(NoServersError) as caught:
        gnats.connect(server.url, **options)
    assert isinstance(next(iter(caught.value.failures.values())), failure)


# -- credentials that end while the link is up --------------------------------------------------


def test_a_jwt_that_expires_is_replaced_by_a_fresh_one() -> None:
    realm = Realm()
    lifetimes = iter([2.0, 3600.0])
    told: list[Exception] = []

    def fresh() -> str:
        return creds(*realm.user(next(lifetimes, 3600.0)))

    with NatsServer(config=realm.config) as server:
        conn = gnats.connect(
            server.url, user_credentials=fresh, error_cb=lambda _, exc: told.append(exc), **FAST
        )
        sub = conn.subscribe("kept")
        wait_until(lambda: conn.stats.reconnects == 1, 15)
        assert isinstance(told[0], AuthenticationExpiredError)
        conn.publish("kept", b"x")
        assert sub.next_msg(5).data == b"x"
        conn.close()


def test_a_jwt_that_expires_and_is_not_replaced_ends_the_connection_and_says_why() -> None:
    realm = Realm()
    text = creds(*realm.user(2.0))
    with NatsServer(config=realm.config) as server:
        conn = gnats.connect(server.url, user_credentials=text, **{**FAST, "reconnect_wait": 0.5})
        conn.wait_for_status("closed", 15)
        assert isinstance(conn.last_error, AuthorizationError)
        # Not in a tight loop. In the last second of its life the server admits it and puts it out
        # at once: that is borne a few times before each try is made to wait.
        assert conn.stats.attempts <= 10


def test_an_account_that_expires_is_waited_for() -> None:
    realm = Realm()
    realm.issue(lifetime=2.0)
    told: list[Exception] = []
    with NatsServer(config=realm.config) as server:
        conn = gnats.connect(
            server.url,
            user_credentials=creds(*realm.user()),
            error_cb=lambda _, exc: told.append(exc),
            ignore_auth_error_abort=True,
            **{**FAST, "reconnect_wait": 0.2},
        )
        sub = conn.subscribe("kept")
        wait_until(lambda: conn.is_reconnecting and told, 15)
        assert isinstance(told[0], AuthenticationExpiredError)
        assert told[0].text.lower() == "account authentication expired"
        realm.issue()
        server.config = realm.config
        server.reload()
        conn.wait_for_status("connected", 15)
        conn.publish("kept", b"x")
        assert sub.next_msg(5).data == b"x"
        conn.close()


def test_a_user_that_is_revoked_comes_back_with_fresh_credentials() -> None:
    realm = Realm()
    told: list[Exception] = []
    users: list[str] = []

    def fresh() -> str:
        token, seed = realm.user()
        users.append(nkeys.from_seed(seed).public_key.decode())
        return creds(token, seed)

    with NatsServer(config=realm.config) as server:
        conn = gnats.connect(
            server.url,
            user_credentials=fresh,
            error_cb=lambda _, exc: told.append(exc),
            **FAST,
        )
        sub = conn.subscribe("kept")
        conn.flush()
        realm.issue(revocations={users[0]: int(time.time())})
        server.config = realm.config
        server.reload()
        wait_until(lambda: conn.stats.reconnects == 1, 15)
        assert isinstance(told[0], AuthenticationExpiredError)
        conn.publish("kept", b"x")
        assert sub.next_msg(5).data == b"x"
        conn.close()


def test_an_account_that_is_full_is_tried_again_until_there_is_room() -> None:
    realm = Realm(conn=1)
    text = creds(*realm.user())
    with NatsServer(config=realm.config) as server:
        first = gnats.connect(server.url, user_credentials=text, **FAST)
        second = gnats.connect(
            server.url, user_credentials=text, retry_on_failed_connect=True, **FAST
        )
        wait_until(lambda: isinstance(second.last_error, MaxConnectionsError), 10)
        first.close()
        second.wait_for_status("connected", 10)
        second.close()


def test_a_user_that_is_put_out_by_a_reload_comes_back_when_it_is_let_in_again() -> None:
    def config(password: str) -> str:
        return f'authorization {{ user: "ada", password: "{password}" }}'

    told: list[Exception] = []
    with NatsServer(config=config("one")) as server:
        conn = gnats.connect(
            server.url,
            user="ada",
            password="one",
            ignore_auth_error_abort=True,
            error_cb=lambda _, exc: told.append(exc),
            **FAST,
        )
        server.reload(config("two"))
        wait_until(lambda: sum(isinstance(exc, AuthorizationError) for exc in told) >= 3, 10)
        server.reload(config("one"))
        conn.wait_for_status("connected", 10)
        assert works(conn)
        conn.close()


def test_the_table_of_the_docs_has_every_way() -> None:
    page = Path(__file__).parent.parent / "docs" / "security.md"
    rows = re.findall(r"^\| `(\w+)`.*?\| ✓ \| `(\w+)` \| ✓", page.read_text("utf-8"), re.MULTILINE)
    assert rows == [(way.__name__, way.refused.__name__) for way in WAYS]
