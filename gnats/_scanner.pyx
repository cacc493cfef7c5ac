"""The compiled twin of scanner.PureScanner. What is said there holds here.

It reads a message's line only where that is written as the server writes it: one blank between two
words, visible ASCII, limits kept. Every other line goes the way of the pure twin, so that nothing
can be read in two ways.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.string cimport memcmp, memcpy

from . import lines
from .errors import ProtocolError
from .lines import read_line

from ._message cimport new_msg

cdef enum:
    # Bytes of "subject sid" that are remembered.
    KEPT = 256

# Digits of a number that fits a Py_ssize_t, whatever they are.
cdef Py_ssize_t DIGITS = 18 if sizeof(Py_ssize_t) == 8 else 9


cdef struct Line:
    # A message's line, but for subject and sid; places are offsets from its first byte.
    Py_ssize_t end  # behind its line end
    Py_ssize_t reply
    Py_ssize_t reply_end
    Py_ssize_t block_size  # -1: no headers
    Py_ssize_t size


cdef Py_ssize_t word_end(const char* at, Py_ssize_t begin, Py_ssize_t length) noexcept nogil:
    """Where the word that begins at *begin* ends: at the first byte that is not visible ASCII."""
    while begin < length and 32 < at[begin] < 127:
        begin += 1
    return begin


cdef Py_ssize_t number(const char* at, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The decimal number there, or -1."""
    cdef Py_ssize_t value = 0
    if begin == end or end - begin > DIGITS:
        return -1
    while begin < end:
        if not 48 <= at[begin] <= 57:
            return -1
        value = value * 10 + (at[begin] - 48)
        begin += 1
    return value


cdef class Scanner:
    """Keeps what it has learned of one link's lines. Never switches."""

    # "subject sid" of the last message, and both as objects: a busy subscription's repeat.
    cdef char _known[KEPT]
    cdef Py_ssize_t _known_length
    cdef object _subject
    cdef object _sid

    def scan(
        self,
        bytes data not None,
        Py_ssize_t position,
        Py_ssize_t max_payload,
        list events not None,
    ):
        """Append to *events* what the whole frames of *data* from *position* on mean; returns
        where the first frame begins that is not complete. Raises ProtocolError, and *events* has
        those in front of the fault.
        """
        cdef const char* at = PyBytes_AS_STRING(data)
        cdef Py_ssize_t length = len(data)
        cdef Py_ssize_t longest = lines.MAX_CONTROL_LINE
        cdef Py_ssize_t start, body, end
        cdef object block, reply
        cdef Line line
        if position < 0:
            raise ValueError(f"position: 0 or more is needed, not {position}")
        while position < length:
            if (
                self._read(at + position, length - position, &line)
                and line.size <= max_payload
                and line.end - 2 <= longest
            ):
                start = position + line.end
                reply = ""
                if line.reply:
                    reply = PyUnicode_DecodeASCII(
                        at + position + line.reply, line.reply_end - line.reply, NULL
                    )
            else:
                end = data.find(b"\r\n", position)
                if end < 0:
                    break
                head = read_line(data[position:end], max_payload, events.append)
                if head is None:
                    position = end + 2
                    continue
                start = end + 2
                self._known_length = 0
                self._subject, self._sid, reply, line.block_size, line.size = head
            if line.size > length - start - 2:  # start + line.size may be no number
                break
            end = start + line.size
            if at[end] != 13 or at[end + 1] != 10:
                raise ProtocolError(
                    f"a message is longer than it announced: {data[position : start - 2][:80]!r}"
                )
            block = None
            body = start
            if line.block_size >= 0:
                body += line.block_size
                block = PyBytes_FromStringAndSize(at + start, line.block_size)
            events.append(
                new_msg(
                    self._subject,
                    self._sid,
                    reply,
                    block,
                    PyBytes_FromStringAndSize(at + body, end - body),
                )
            )
            position = end + 2
        return position

    cdef bint _read(self, const char* at, Py_ssize_t length, Line* line) except -1:
        """Read a message's line; False where it is not complete, or not written that way."""
        cdef Py_ssize_t place, end, count
        cdef Py_ssize_t ends[4]
        cdef Py_ssize_t starts[4]
        cdef bint has_headers = at[0] == c"H"
        place = 5 if has_headers else 4
        if length <= place or memcmp(at + has_headers, b"MSG ", 4) != 0:
            return False
        place = self._read_names(at, place, length)
        if not place:
            return False
        count = 0
        while True:
            end = word_end(at, place, length)
            if end == place or end + 1 >= length or count == 3:
                return False
            starts[count], ends[count] = place, end
            count += 1
            place = end + 1
            if at[end] == 13 and at[place] == 10:
                break
            if at[end] != 32:
                return False
        line.end = place + 1
        line.size = number(at, starts[count - 1], ends[count - 1])
        line.block_size = -1
        if has_headers:
            count -= 1
            if count == 0:
                return False
            line.block_size = number(at, starts[count - 1], ends[count - 1])
            if not 0 <= line.block_size <= line.size:
                return False
        line.reply = line.reply_end = 0
        if count == 2:
            line.reply, line.reply_end = starts[0], ends[0]
        return line.size >= 0 and count < 3

    cdef Py_ssize_t _read_names(
        self, const char* at, Py_ssize_t place, Py_ssize_t length
    ) except -1:
        """Read subject and sid, which begin at *place*, and remember them; returns where the next
        word begins, or 0."""
        cdef Py_ssize_t known = self._known_length
        cdef Py_ssize_t subject_end, sid_end, sid
        if (
            known
            and place + known < length
            and at[place + known] == 32
            and memcmp(at + place, self._known, known) == 0
        ):
            return place + known + 1
        subject_end = word_end(at, place, length)
        if subject_end == place or subject_end >= length or at[subject_end] != 32:
            return 0
        sid_end = word_end(at, subject_end + 1, length)
        if sid_end >= length or at[sid_end] != 32:
            return 0
        sid = number(at, subject_end + 1, sid_end)
        if sid < 0:
            return 0
        self._known_length = 0
        self._subject = PyUnicode_DecodeASCII(at + place, subject_end - place, NULL)
        self._sid = sid
        known = sid_end - place
        if known <= KEPT:
            memcpy(self._known, at + place, known)
            self._known_length = known
        return sid_end + 1
