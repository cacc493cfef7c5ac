"""The compiled twin of message.Msg. What is said there holds here."""

cimport cython

from .errors import Error, ProtocolError
from .headers import decode_headers

_NO_RESPONDERS = b"NATS/1.0 503"


# As many as one recv brings: made and let go at a rate of a million a second.
@cython.freelist(2048)
cdef class Msg:
    """A message as it came: ``subject``, ``reply`` ("" when there is none), ``data`` (bytes),
    ``headers`` (None when there are none) and ``sub``, the subscription it came for.
    """

    def __init__(self, subject, sid, reply, block, data):
        self.subject = subject
        self.sid = sid
        self.reply = reply
        self.block = block
        self.data = data
        self.sub = None

    @property
    def headers(self):
        """The headers, parsed on first use; None when the message has none.

        Raises ProtocolError when the block is no header block.
        """
        if self.block is None:
            return None
        if self._headers is None:
            self._headers = decode_headers(self.block)
        return self._headers

    @property
    def header(self):
        """The same as ``headers``, under nats-py's older name."""
        return self.headers

    def respond(self, payload=b"", headers=None):
        """Publish *payload* to this message's reply subject. May switch as ``publish`` may.

        Raises Error when the message asked for no answer, and what ``publish`` raises.
        """
        if not self.reply:
            raise Error(f"message on {self.subject!r} has no reply subject to respond to")
        if self.sub is None:
            raise Error("this message belongs to no subscription: publish to msg.reply instead")
        self.sub.respond_to(self.reply, payload, headers)

    def __repr__(self):
        reply = f" reply={self.reply!r}" if self.reply else ""
        headers = f" headers={self._shown_headers()}" if self.block is not None else ""
        data = self.data if len(self.data) <= 64 else self.data[:61] + b"..."
        return f"<Msg {self.subject!r}{reply}{headers} data={data!r} ({len(self.data)} bytes)>"

    def __reduce__(self):
        fields = self.subject, self.sid, self.reply, self.block, self.data
        return type(self), fields, (None, {"sub": self.sub})

    def _shown_headers(self):
        try:
            return f"{self.headers!r:.200}"  # a peer may have sent a megabyte of them
        except ProtocolError:
            return f"broken, {self.block!r:.60}"

    def is_no_responders(self):
        """Whether this is the server's word that nobody listens: status 503, no payload."""
        block = self.block
        if block is None or self.data or not block.startswith(_NO_RESPONDERS):
            return False
        return block[len(_NO_RESPONDERS) : len(_NO_RESPONDERS) + 1] in (b" ", b"\r", b"")
