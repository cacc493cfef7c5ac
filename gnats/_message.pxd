cdef class Msg:
    cdef public object subject
    cdef public object reply
    cdef public object data
    cdef public object sid
    cdef public object block
    cdef public object sub
    cdef object _headers


cdef inline Msg new_msg(object subject, object sid, object reply, object block, object data):
    cdef Msg msg = Msg.__new__(Msg)
    msg.subject = subject
    msg.sid = sid
    msg.reply = reply
    msg.block = block
    msg.data = data
    return msg
