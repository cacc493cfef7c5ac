from ._message cimport Msg


cdef class Mailbox:
    cdef public Py_ssize_t pending_msgs_limit
    cdef public Py_ssize_t pending_bytes_limit
    cdef public long long delivered
    cdef public long long dropped
    cdef public Py_ssize_t _bytes
    cdef public Py_ssize_t _concurrency
    cdef public Py_ssize_t _running
    cdef public long long _max_msgs
    cdef public long long _received
    cdef public object _direct
    cdef public bint _accepting
    cdef public bint _slow
    cdef public bint _watched
    # From _first on; what is in front has been handed out.
    cdef list _queue
    cdef Py_ssize_t _first

    cdef Py_ssize_t _pending(self) noexcept
    cdef int _push(self, Msg msg) except -1
    cdef Msg _pop(self)


cdef class Sorter:
    cdef public dict _sinks
    cdef public long long in_bytes
    cdef public long long in_msgs
    cdef public long long in_unknown
