"""The compiled twin of mailbox.Mailbox and mailbox.Sorter. What is said there holds here.

A list and the place of its first message do for a deque, whose methods cost a call each.
"""

from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from ._message cimport Msg

cdef double SLICE = 0.005  # seconds; why, says mailbox.py

# So many places in front are dropped at once, when they are half of the list.
cdef enum:
    SPENT = 1024


cdef inline double clock() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef inline Py_ssize_t length(object data) except -1:
    return PyBytes_GET_SIZE(data) if PyBytes_CheckExact(data) else len(data)


cdef inline Py_ssize_t size_of(Msg msg) except -1:
    cdef Py_ssize_t size = length(msg.data)
    if msg.block is not None:
        size += length(msg.block)
    return size


cdef class Mailbox:
    """One subscription's messages, in order, within its limits. Never switches."""

    def __init__(self, pending_msgs_limit, pending_bytes_limit, concurrency, direct=None):
        self.pending_msgs_limit = pending_msgs_limit
        self.pending_bytes_limit = pending_bytes_limit
        self._concurrency = concurrency
        self._direct = direct
        self._accepting = True

    def _start_delivery(self):
        """There are messages, and handlers too few: start one more."""
        raise NotImplementedError

    def _arrived(self):
        """There is one more message, and somebody waits."""
        raise NotImplementedError

    def _overflowed(self):
        """A message has found no room."""
        raise NotImplementedError

    def _refused(self):
        """A message has come for what takes no more."""
        raise NotImplementedError

    def _filled(self):
        """The last message of ``_max_msgs`` has come."""
        raise NotImplementedError

    def _failed(self, error):
        """A handler has raised."""
        raise NotImplementedError

    def push(self, Msg msg not None):
        """Take one message; the reader calls it. Never raises."""
        self._push(msg)

    cdef int _push(self, Msg msg) except -1:
        cdef Py_ssize_t size
        if not self._accepting:
            self._refused()
            return 0
        self._received += 1
        if self._direct is not None:
            msg.sub = self
            self._direct(msg)
            return 0
        size = size_of(msg)
        if self._queue is None:
            self._queue = []
            self._first = 0
        if (
            self._pending() >= self.pending_msgs_limit
            or self._bytes + size > self.pending_bytes_limit
        ):
            self._overflowed()
        else:
            self._queue.append(msg)
            self._bytes += size
            if self._running < self._concurrency:
                self._start_delivery()
            elif self._watched:
                self._arrived()
        if self._received == self._max_msgs:
            self._filled()
        return 0

    cdef Py_ssize_t _pending(self) noexcept:
        return 0 if self._queue is None else PyList_GET_SIZE(self._queue) - self._first

    @property
    def pending_msgs(self):
        """Messages queued and not handed to the user yet."""
        return self._pending()

    @property
    def pending_bytes(self):
        """Payload and header bytes of the queued messages."""
        return self._bytes

    def pop(self):
        """The first message. Raises IndexError when there is none."""
        if not self._pending():
            raise IndexError("no message is queued")
        return self._pop()

    cdef Msg _pop(self):
        cdef list queue = self._queue
        cdef Msg msg = <Msg>PyList_GET_ITEM(queue, self._first)
        queue[self._first] = None
        self._first += 1
        if self._first == PyList_GET_SIZE(queue):
            queue.clear()
            self._first = 0
        elif self._first >= SPENT and self._first * 2 >= PyList_GET_SIZE(queue):
            del queue[: self._first]
            self._first = 0
        msg.sub = self
        self._bytes -= size_of(msg)
        self.delivered += 1
        # Why the half, says mailbox.py.
        if self._slow and self._pending() <= self.pending_msgs_limit // 2:
            self._slow = self._bytes > self.pending_bytes_limit // 2
        return msg

    def work(self, cb, caught):
        """Call *cb* with one message after the other; switches where *cb* does. False when none
        is left, True when some are, but it has gone on for ``SLICE`` seconds and ought to let
        others in. What
        *cb* raises goes to ``_failed`` if it is one of *caught*."""
        cdef double until = clock() + SLICE
        cdef Msg msg
        while self._pending():
            msg = self._pop()
            try:
                cb(msg)
            except caught as exc:
                self._failed(exc)
            if clock() > until:
                return self._pending() > 0
        return False

    def empty(self):
        """Give up what is queued; returns how many messages that were."""
        cdef Py_ssize_t count = self._pending()
        self._queue = None
        self._first = 0
        self._bytes = 0
        return count

    def shrink(self):
        """Nothing is queued, and nothing may come for long: back to a small object."""
        if not self._pending():
            self._queue = None
            self._first = 0

    @property
    def _is_small(self):
        return self._queue is None


cdef class Sorter:
    """Hands each event on: a message to its sink by its sid, what is none to ``on_event``."""

    def __init__(self, dict sinks not None):
        self._sinks = sinks

    def on_event(self, event):
        """An event that is no message."""
        raise NotImplementedError

    def hand_on(self, events):
        """Hand each event on. Never switches, so a kill cannot lose half a batch."""
        cdef dict sinks = self._sinks
        cdef long long count = 0, size = 0
        cdef Msg msg
        cdef PyObject* found
        for event in events:
            if type(event) is not Msg:
                self.on_event(event)
                continue
            msg = <Msg>event
            count += 1
            size += size_of(msg)
            found = PyDict_GetItemWithError(sinks, msg.sid)
            if found is NULL:
                self.in_unknown += 1
                continue
            sink = <object>found
            if isinstance(sink, Mailbox):
                (<Mailbox>sink)._push(msg)
            else:
                sink.push(msg)
        self.in_msgs += count
        self.in_bytes += size
