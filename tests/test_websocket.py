"""WebSocket framing, against wsproto's server side and against bytes that no server should send."""

from __future__ import annotations

import pickle
import struct
import zlib
from typing import Any

import gevent
import pytest
import wsproto
import wsproto.extensions
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, TextMessage

import gnats
from gnats.errors import (
    BadURLError,
    NoServersError,
    OptionError,
    OutboundBufferLimitError,
    ProtocolError,
    SecureConnWantedError,
    TransportError,
    UnexpectedEOF,
)
from gnats.testing import FakeClient
from gnats.transport import WebSocketTransport
from gnats.url import parse_url
from gnats.websocket import MOST_EVENTS, MOST_HELD, SLICE, WebSocket, masked_frame

URL = parse_url("ws://h:1/path")
MOST_PIECE = MOST_HELD + 1032 * SLICE  # deflate makes no more than that of a byte


class Pair:
    """Our side, and a server's that has accepted it."""

    def __init__(self, compression: bool = False) -> None:
        self.ours = WebSocket(URL, None, compression)
        self.server = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self.server.receive_data(self.ours.request())
        list(self.server.events())
        extensions = [wsproto.extensions.PerMessageDeflate()] if compression else []
        self.ours.feed(self.server.send(AcceptConnection(extensions=extensions)))
        assert self.ours.is_open

    def read(self, *events: Any) -> bytes:
        return self.ours.feed(b"".join(self.server.send(event) for event in events))

    def read_out(self, data: bytes) -> bytes:
        """All that comes of *data*, in pieces."""
        out = [self.ours.feed(data)]
        while self.ours.has_more:
            out.append(self.ours.feed(b""))
        assert max(map(len, out)) <= MOST_PIECE
        return b"".join(out)


def accept(headers: str) -> WebSocket:
    """A handshake that is answered with these *headers* besides the proper ones."""
    ours = WebSocket(URL, None, True)
    server = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    server.receive_data(ours.request())
    list(server.events())
    answer = bytes(server.send(AcceptConnection()))
    ours.feed(answer[:-2] + headers.encode("utf-8") + b"\r\n\r\n")
    return ours


# -- both ways -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [False, True])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 1000, 65535, 65536, 200_000])
def test_there_and_back(compression: bool, size: int) -> None:
    pair = Pair(compression)
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    pair.server.receive_data(pair.ours.frame(data)[0])
    assert b"".join(event.data for event in pair.server.events()) == data
    assert pair.read_out(bytes(pair.server.send(BytesMessage(data=data)))) == data


@pytest.mark.parametrize("compression", [False, True])
def test_byte_by_byte_and_cut_anywhere(compression: bool) -> None:
    pair = Pair(compression)
    events = [
        BytesMessage(data=b"one", message_finished=False),
        Ping(payload=b"in between"),
        BytesMessage(data=b"two"),
        Ping(payload=b"before"),
        TextMessage(data="three"),
        CloseConnection(code=1001, reason="bye"),
    ]
    wire = b"".join(bytes(pair.server.send(event)) for event in events)
    got = b""
    for byte in wire:
        pair.ours.check()
        got += pair.ours.feed(bytes([byte]))
    assert got == b"onetwothree"
    with pytest.raises(UnexpectedEOF, match="1001 'bye'"):
        pair.ours.check()


def test_a_ping_is_answered_in_front_of_the_next_frame() -> None:
    pair = Pair()
    pair.read(Ping(payload=b"are you there"))
    assert pair.ours.owes_reply
    frame, lead = pair.ours.frame(b"data")
    assert not pair.ours.owes_reply
    pair.server.receive_data(frame)
    pong, message = pair.server.events()
    assert (bytes(pong.payload), bytes(message.data)) == (b"are you there", b"data")
    assert lead == len(frame) - 4


# -- what a server should not do -----------------------------------------------------------------


def test_behind_its_goodbye_nothing_is_sent_and_no_secret_told() -> None:
    """INFO and a CLOSE in one segment: CONNECT must not be quoted by an error."""
    pair = Pair(compression=True)
    assert (
        pair.read(BytesMessage(data=b"INFO {}\r\n"), CloseConnection(code=1001)) == b"INFO {}\r\n"
    )
    with pytest.raises(UnexpectedEOF) as caught:
        pair.ours.frame(b'CONNECT {"pass":"s3cret"}\r\n')
    assert "s3cret" not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "headers",
    [
        "Sec-WebSocket-Extensions: permessage-deflate, permessage-deflate",
        "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99",
        "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits",
        "Sec-WebSocket-Extensions: permessage-déflate",
        "Sec-WebSocket-Extensions: something-else",
        "Sec-WebSocket-Protocol: unasked",
    ],
)
def test_a_handshake_that_is_not_right(headers: str) -> None:
    ours = accept(headers)
    with pytest.raises((ProtocolError, TransportError)):
        ours.check()
    assert not ours.is_open


def test_a_bomb_comes_in_pieces() -> None:
    pair = Pair(compression=True)
    size = 60_000_000
    packer = zlib.compressobj(wbits=-15)
    payload = packer.compress(bytes(size)) + packer.flush(zlib.Z_SYNC_FLUSH)
    wire = struct.pack("!BBH", 0xC2, 126, len(payload) - 4) + payload[:-4]
    assert len(wire) < 65536
    taken = len(pair.ours.feed(wire))
    pieces = 1
    while pair.ours.has_more:
        piece = pair.ours.feed(b"")
        assert len(piece) <= MOST_PIECE
        taken += len(piece)
        pieces += 1
    assert taken == size
    assert pieces > 10


def test_a_flood_of_empty_frames_is_taken_in_steps() -> None:
    pair = Pair()
    wire = b"\x82\x00" * (3 * MOST_EVENTS + 1) + b"\x82\x01x"
    assert pair.ours.feed(wire) == b""
    steps = 0
    out = b""
    while pair.ours.has_more:
        out += pair.ours.feed(b"")
        steps += 1
    assert (out, steps) == (b"x", 3)


def test_a_frame_that_breaks_the_protocol_is_no_goodbye() -> None:
    pair = Pair()
    assert pair.ours.feed(b"\x82\x01a\xf2\x00") == b"a"
    with pytest.raises(ProtocolError):
        pair.ours.check()


def test_only_the_last_ping_is_answered() -> None:
    pair = Pair()
    pair.read(*[Ping(payload=b"%d" % number) for number in range(20)])
    pair.server.receive_data(pair.ours.frame(b"")[0])
    pongs = [event for event in pair.server.events() if isinstance(event, Pong)]
    assert [bytes(pong.payload) for pong in pongs] == [b"19"]


def test_who_owes_a_reply_from_the_handshake_says_so_at_once() -> None:
    pair = Pair()
    pair.read(Ping(payload=b"x"))
    told: list[int] = []
    link = WebSocketTransport(Below(0), pair.ours)  # type: ignore[arg-type]
    link.on_owing = lambda: told.append(1)
    assert told == [1]


def test_tls_over_a_scheme_that_has_none_is_refused_before_a_byte_is_sent(
    fake_server: Any,
) -> None:
    server = fake_server(strict=False)
    with pytest.raises(NoServersError) as caught:
        gnats.connect(
            server.url.replace("nats:", "ws:"),
            tls=gnats.TLSOptions(),
            ws_connection_headers={"Authorization": "Bearer s3cret"},
        )
    (failure,) = caught.value.failures.values()
    assert isinstance(failure, SecureConnWantedError)
    assert not server.clients


def test_headers_are_copied_checked_and_not_pickled() -> None:
    headers = {"Authorization": "Bearer s3cret"}
    options = gnats.ConnectionOptions(ws_connection_headers=headers)
    headers["Authorization"] = "x\r\ny"
    assert options.ws_connection_headers == {"Authorization": "Bearer s3cret"}
    with pytest.raises(TypeError):
        pickle.dumps(options)
    for value in (" x", "x ", "\tx", "x\n"):
        with pytest.raises(OptionError) as caught:
            gnats.ConnectionOptions(ws_connection_headers={"A": value})
        assert "x" not in str(caught.value).replace("ws_connection_headers", "")


def test_a_host_that_makes_no_request() -> None:
    with pytest.raises(ProtocolError):
        WebSocket(parse_url(f"ws://{'a' * 70}:1"), None, False).request()


def test_what_a_user_may_not_set() -> None:
    for name in ("Host", "connection", "UPGRADE", "Content-Length", "Sec-WebSocket-Key"):
        with pytest.raises(OptionError, match="handshake"):
            gnats.ConnectionOptions(ws_connection_headers={name: "x"})
    with pytest.raises(BadURLError, match="ASCII") as caught:
        parse_url("ws://u:s3cret@h/é")
    assert "s3cret" not in str(caught.value)


# -- what a failing write leaves in doubt --------------------------------------------------------


class Below:
    """A link that takes so many bytes, in pieces, and then fails."""

    def __init__(self, size: int) -> None:
        self.left = size

    def send(self, data: memoryview) -> int:
        if not self.left:
            raise TransportError("gone")
        size = min(len(data), self.left, 300)
        self.left -= size
        return size


@pytest.mark.parametrize(
    ("taken", "compression", "doubt"),
    [
        (0, False, 0),
        (8, False, 0),  # two bytes of head, two of size, four of mask
        (9, False, 1),
        (700, False, 692),
        (0, True, 0),
        (1, True, 1000),
    ],
)
def test_only_what_may_have_been_read_is_in_doubt(
    taken: int, compression: bool, doubt: int
) -> None:
    link = WebSocketTransport(Below(taken), Pair(compression).ours)  # type: ignore[arg-type]
    with pytest.raises(TransportError):
        link.send(memoryview(bytes(range(250)) * 4))
    assert link.in_doubt == doubt


def test_masking_is_its_own_inverse() -> None:
    masked = masked_frame(b"abcde", b"\1\2\3\4")[6:]
    assert bytes(a ^ b for a, b in zip(masked, b"\1\2\3\4\1")) == b"abcde"


# -- over a socket -------------------------------------------------------------------------------


def upgrade(client: FakeClient, extensions: bool = False) -> wsproto.WSConnection:
    """Take the upgrade as a server does."""
    server = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    request = b""
    while b"\r\n\r\n" not in request:
        request += client.read_exactly(1)
    server.receive_data(request)
    list(server.events())
    offered = [wsproto.extensions.PerMessageDeflate()] if extensions else []
    client.send(bytes(server.send(AcceptConnection(extensions=offered))))
    return server


INFO = b'INFO {"server_id":"x","version":"2.10.0","proto":1,"max_payload":1000,"headers":true}\r\n'


@pytest.mark.parametrize("extensions", [False, True], ids=["plain", "compressed"])
def test_a_server_that_says_goodbye_behind_info(fake_server: Any, extensions: bool) -> None:
    def shut(client: FakeClient) -> None:
        server = upgrade(client, extensions)
        client.send(server.send(BytesMessage(data=INFO)) + server.send(CloseConnection(code=1001)))

    server = fake_server(shut, strict=False)
    with pytest.raises(NoServersError) as caught:
        gnats.connect(server.url.replace("nats:", "ws:"), user="u", password="s3cret")
    (failure,) = caught.value.failures.values()
    assert isinstance(failure, UnexpectedEOF)
    assert "s3cret" not in str(caught.value)


def test_many_pings_of_a_server_that_does_not_read(fake_server: Any) -> None:
    def asking(client: FakeClient) -> None:
        server = upgrade(client)
        client.send(bytes(server.send(BytesMessage(data=INFO))))
        data = b""
        while b"PING\r\n" not in data:
            server.receive_data(client.read_exactly(1))
            data += b"".join(event.data for event in server.events())
        client.send(bytes(server.send(BytesMessage(data=b"PONG\r\n"))))
        full.wait(10)
        for _ in range(300):
            client.send(bytes(server.send(Ping(payload=b"x" * 100))))
            gevent.sleep(0)
        asked.set()
        client.stall()

    full, asked = gevent.event.Event(), gevent.event.Event()
    server = fake_server(asking, strict=False)
    conn = gnats.connect(server.url.replace("nats:", "ws:"), max_pings_out=10, publish_timeout=0.2)
    with pytest.raises(OutboundBufferLimitError):
        while True:  # as much as the kernel takes, and as the high-water mark allows
            conn.publish("s", b"x" * 1000)
    before = conn.stats.pings_sent
    full.set()
    assert asked.wait(10)
    gevent.sleep(0.1)
    assert conn.stats.pings_sent - before <= 2
    conn.close()
