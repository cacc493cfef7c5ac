"""The compiled twin of inbox.Waiter and inbox.Inbox. What is said there holds here."""

from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject
from libc.math cimport INFINITY
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from .backoff import LONGEST
from .errors import NoRespondersError, TimeoutError

from ._message cimport Msg

cdef double LONGEST_TIMER = LONGEST
cdef double LOOKING = 0.1  # why, says inbox.py


cdef inline double clock() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef class Waiter:
    """One request that wants one reply, and its deadline; made by the greenlet that will wait.

    *new_switch*: see ``Inbox``.
    """

    cdef readonly object subject
    cdef readonly object seconds
    cdef public object to
    cdef readonly object reply
    cdef readonly object error
    cdef object _switch
    cdef double _at
    cdef bint _woken

    def __init__(self, subject, seconds, new_switch):
        self.subject = subject
        self.seconds = seconds
        self._at = INFINITY
        if seconds is not None:
            self._at = clock() + <double>seconds
        self.to = ""
        self._switch = new_switch()

    @property
    def at(self):
        return None if self.seconds is None else self._at

    def remaining(self):
        """Seconds left, never below zero; None when there is no end."""
        return None if self.seconds is None else max(0.0, self._at - clock())

    @property
    def expired(self):
        return self._at <= clock()

    def deliver(self, Msg msg not None):
        """The reply came; False when it is a second one, which is late. Never switches."""
        return self._deliver(msg)

    cdef bint _deliver(self, Msg msg) except -1:
        if self.reply is not None:
            return False
        self.reply = msg
        self._wake()
        return True

    def fail(self, error):
        """No reply can come. Never switches."""
        self.error = error
        self._wake()

    def wake(self):
        """End the wait in the next loop turn. Never switches."""
        self._wake()

    cdef int _wake(self) except -1:
        if not self._woken:
            self._woken = True
            self._switch.hub.loop.run_callback(self._switch.switch, None)
        return 0

    def wait(self):
        """The reply. Switches. Raises NoRespondersError, TimeoutError, ConnectionClosedError."""
        if not self._woken and self.seconds != 0:
            self._switch.get()
        if self.reply is not None:
            if (<Msg>self.reply).block is not None and self.reply.is_no_responders():
                raise NoRespondersError(self.subject)
            return self.reply
        if self.error is not None:
            raise self.error
        raise TimeoutError(
            f"no answer to the request to {self.subject!r} within {self.seconds} s", self.seconds
        )


cdef class Inbox:
    """Who waits, by reply subject. ``deliver`` is called by the reader, and never switches.

    *new_switch* makes what a greenlet waits in (gevent's Waiter), *start_timer* calls a function
    once, so many seconds later, and returns how to call it off, *check* raises Error for a
    caller that cannot wait.
    """

    cdef public object _prefix
    cdef public dict _waiters
    cdef public long long late
    cdef object _new_switch
    cdef object _start_timer
    cdef object _check
    cdef object _call_off
    cdef long long _count
    cdef double _due

    def __init__(self, new_switch, start_timer, check):
        self._new_switch = new_switch
        self._start_timer = start_timer
        self._check = check
        self._prefix = ""
        self._waiters = {}
        self._due = INFINITY

    def _begin(self):
        """Make the inbox itself, ``_prefix``: it is the first request."""
        raise NotImplementedError

    @property
    def waiting(self):
        """Requests that are not over."""
        return len(self._waiters)

    def ask(self, subject, seconds):
        """Begin a request for one reply; ``close`` it in the end. Raises Error in the hub, and
        what ``_begin`` raises."""
        cdef Waiter waiter
        self._check("request")
        waiter = Waiter(subject, seconds, self._new_switch)
        waiter.to = self.open(waiter)
        if waiter._at < self._due:
            self._set_timer(waiter._at)
        return waiter

    def open(self, waiter):
        """Begin a request; returns its reply subject."""
        if not self._prefix:
            self._begin()
        self._count += 1
        reply = f"{self._prefix}{self._count:x}"
        self._waiters[reply] = waiter
        return reply

    def close(self, reply):
        """The request is over: a later reply is let go."""
        self._waiters.pop(reply, None)

    def deliver(self, Msg msg not None):
        """A reply came. Never raises."""
        cdef dict waiters = self._waiters
        cdef PyObject* found = PyDict_GetItemWithError(waiters, msg.subject)
        if found is NULL:
            self.late += 1
            return
        waiter = <object>found
        if type(waiter) is Waiter:
            self.late += not (<Waiter>waiter)._deliver(msg)
        else:
            self.late += not waiter.deliver(msg)

    def _set_timer(self, double at):
        self._clear_timer()
        cdef double seconds = at - clock()
        if seconds < LONGEST_TIMER:
            self._due = at
            self._call_off = self._start_timer(max(0.0, seconds), self._expire)

    def _clear_timer(self):
        self._due = INFINITY
        if self._call_off is not None:
            self._call_off()
            self._call_off = None

    def _expire(self):
        """In the hub: somebody's time may be over."""
        cdef double now = clock(), next_at = INFINITY, after
        cdef Waiter one
        self._clear_timer()
        # A copy: whoever is collected as garbage meanwhile closes what it has asked for.
        for waiter in list(self._waiters.values()):
            if type(waiter) is not Waiter:
                continue
            one = <Waiter>waiter
            if one._at <= now:
                one._wake()
            elif one._at < next_at:
                next_at = one._at
        if next_at != INFINITY:
            after = clock()
            self._set_timer(max(next_at, after + (after - now) / LOOKING))
