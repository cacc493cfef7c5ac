# cython: nonecheck=True
"""The compiled twin of intake.Intake and intake.Publisher. What is said there holds here.

``_buffer`` may be None: of a Publisher made by ``__new__`` alone, or when somebody deleted it.
Hence the check above, without which None would be read as if it were an Intake.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_CheckExact
from libc.string cimport memcpy

from .commands import pub_head
from .errors import MaxPayloadError
from .info import MAX_PAYLOAD_CEILING
from .payload import to_bytes
from .subjects import MAX_NAME, check_control_line, encode_subject

cdef extern from "Python.h":
    ctypedef struct PyThreadState:
        pass

    PyThreadState* PyThreadState_Get() noexcept
    unsigned long long PyThreadState_GetID(PyThreadState*) noexcept
    const char* PyUnicode_AsUTF8AndSize(object, Py_ssize_t*) except NULL

cdef enum:
    # Why so many, says intake.py.
    HEADS_KEPT = 8192
    # Decimal digits of any size.
    DIGITS = 20

cdef Py_ssize_t LONGEST_NAME = MAX_NAME


cdef inline unsigned long long this_thread() noexcept:
    """The calling thread. Unlike its ident, the number of its state is never used again."""
    return PyThreadState_GetID(PyThreadState_Get())


cdef bytes new_frame(bytes head, const char* reply, Py_ssize_t reply_size, bytes payload):
    """One PUB frame. *reply_size* 0: without a reply."""
    cdef char digits[DIGITS]
    cdef Py_ssize_t size = len(payload), head_size = len(head)
    cdef Py_ssize_t first = DIGITS, rest = size
    cdef bytes frame
    cdef char* at
    while True:
        first -= 1
        digits[first] = 48 + rest % 10
        rest //= 10
        if not rest:
            break
    frame = PyBytes_FromStringAndSize(
        NULL, head_size + reply_size + (reply_size > 0) + DIGITS - first + 2 + size + 2
    )
    at = PyBytes_AS_STRING(frame)
    memcpy(at, PyBytes_AS_STRING(head), head_size)
    at += head_size
    if reply_size:
        memcpy(at, reply, reply_size)
        at[reply_size] = 32
        at += reply_size + 1
    memcpy(at, &digits[first], DIGITS - first)
    at += DIGITS - first
    at[0] = 13
    at[1] = 10
    memcpy(at + 2, PyBytes_AS_STRING(payload), size)
    at += 2 + size
    at[0] = 13
    at[1] = 10
    return frame


cdef class Intake:
    """The end of the buffer where frames go in."""

    cdef public list frames
    cdef public Py_ssize_t size
    cdef public Py_ssize_t limit
    cdef public Py_ssize_t max_payload
    cdef public long long accepted
    cdef public long long accepted_bytes
    cdef public object wake

    def __init__(self):
        self.frames = []
        self.limit = -1
        self.max_payload = MAX_PAYLOAD_CEILING


cdef class Publisher:
    """What a connection publishes with."""

    cdef public Intake _buffer
    cdef dict _heads
    cdef unsigned long long _thread  # whose it is; 0: nobody's

    def __init__(self, home):
        self._buffer = Intake()
        self._heads = {}

    @property
    def _is_elsewhere(self):
        """Whether it is another thread's than the caller's."""
        raise NotImplementedError

    def _hand_over(self, subject, payload, reply, headers):
        """Publish, from another thread."""
        raise NotImplementedError

    def _full_frame(self, subject, head, payload, reply, headers):
        """A frame with a reply or headers, and its size as the server counts it."""
        raise NotImplementedError

    def _make_room(self, length, deadline):
        """Return when *length* more bytes may be appended; for a request, with its *deadline*."""
        raise NotImplementedError

    def _move_in(self, home):
        """The calling thread is its own from now on; *home*: a new thread-local."""
        self._thread = this_thread()
        self._heads = {}

    @property
    def _known_heads(self):
        return self._heads

    @property
    def _is_ready(self):
        """Whether the caller's thread may put a message in at once, as far as is known here."""
        return self._buffer.limit >= 0 and self._thread == this_thread()

    def publish(self, subject, payload=b"", reply="", headers=None):
        """Publish one message: bytes-like, or str as UTF-8. Returns once it is accepted.

        Never switches below the high-water mark (1 MiB of unsent frames), and is legal in a hub
        callback there. Above it waits for room, at most ``publish_timeout`` seconds. While
        there is no link it appends up to ``reconnect_buf_size`` bytes. Another thread than the
        connection's hands the message over, in its own order; where it has to wait for room it
        blocks, as a thread does. Raises OutboundBufferLimitError (nothing of the message is kept),
        BadSubjectError, HeaderError, MaxPayloadError, TypeError for another payload,
        ConnectionClosedError, ConnectionDrainingError.
        """
        cdef bytes head, data, frame
        cdef Py_ssize_t size
        if self._thread != this_thread() and self._is_elsewhere:
            self._hand_over(subject, payload, reply, headers)
            return
        head = self._known_head(subject)
        data = payload if type(payload) is bytes else to_bytes(payload)
        if headers is not None or reply != "":
            frame, size = self._full_frame(subject, head, data, reply, headers)
        else:
            frame = new_frame(head, NULL, 0, data)
            size = len(data)
        self._put(frame, size, subject, None)

    def _ask(self, subject, payload, reply, headers, deadline):
        """Publish with a reply subject of our own making, which needs no check; in the
        connection's own thread."""
        cdef bytes head = self._known_head(subject), data, frame
        cdef Py_ssize_t size, reply_size = 0
        cdef const char* wire
        data = payload if type(payload) is bytes else to_bytes(payload)
        if headers is not None:
            frame, size = self._full_frame(subject, head, data, reply, headers)
        else:
            wire = PyUnicode_AsUTF8AndSize(reply, &reply_size)
            if len(head) + reply_size > LONGEST_NAME:
                check_control_line(head, reply.encode())
            frame = new_frame(head, wire, reply_size, data)
            size = len(data)
        self._put(frame, size, subject, deadline)

    def _accept(self, bytes frame not None, Py_ssize_t size, subject, deadline):
        """Put one message frame into the buffer; *size* is its headers and payload. For a request
        it waits for room no longer than *deadline*, nor than ``publish_timeout``."""
        self._put(frame, size, subject, deadline)

    cdef int _put(self, bytes frame, Py_ssize_t size, object subject, object deadline) except -1:
        cdef Intake buffer = self._buffer
        cdef Py_ssize_t length = len(frame)
        if size > buffer.max_payload:
            self._check_size(size, subject)
        if buffer.size + length > buffer.limit:
            self._make_room(length, deadline)
            self._check_size(size, subject)  # it may be another server by now
        buffer.frames.append(frame)
        buffer.size += length
        buffer.accepted += 1
        buffer.accepted_bytes += size
        if buffer.wake is not None:
            buffer.wake()
        return 0

    cdef bytes _known_head(self, object subject):
        cdef dict heads = self._heads
        cdef PyObject* found
        if PyUnicode_CheckExact(subject):
            found = PyDict_GetItemWithError(heads, subject)
            if found is not NULL:
                return <bytes>found
        return self._head(subject)

    def _check_size(self, Py_ssize_t size, subject):
        if size > self._buffer.max_payload:
            raise MaxPayloadError(size, self._buffer.max_payload, subject)

    def _head(self, subject):
        """The head of a subject that is not known yet. Raises BadSubjectError."""
        head = pub_head(encode_subject(subject))
        if len(self._heads) >= HEADS_KEPT:
            self._heads.clear()
        self._heads[subject] = head
        return head
