"""What a forked child must do about the connections that it inherited, before anything else.

The descriptors are the parent's, and so are the greenlets and the messages that wait: the child
lets go of them all in the hook, without I/O and without switching. What a connection makes of
itself then is its own affair. Source: DESIGN 4.8, ``os.register_at_fork``.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

import gevent

from . import transport


class Inherited(Protocol):
    """What can live on in a child."""

    @property
    def _is_at_home(self) -> bool: ...  # pragma: no cover

    def _after_fork(self) -> None: ...  # pragma: no cover


_living: WeakSet[Inherited] = WeakSet()
_pid = os.getpid()  # of the process that those who live are at home in


def watch(heir: Inherited) -> None:
    """Have ``heir._after_fork()`` called in every child that is forked from now on, as long as
    *heir* lives. ``heir._is_at_home`` tells whether it has watchers and greenlets on the hub of the
    calling thread. Never switches."""
    _living.add(heir)


def after_fork() -> None:
    """In a child of a fork that Python did not hear of, do what is done after every other fork.

    A server written in C, such as uWSGI, may fork without running Python's hooks: call this in the
    child, before anything else. Where it is not needed it does nothing. Never switches.
    """
    if _pid != os.getpid():
        _in_child()


def _in_child() -> None:
    global _pid
    _pid = os.getpid()
    heirs = list(_living)
    transport.let_go_of_all()
    if any(heir._is_at_home for heir in heirs):
        # The loop shares its epoll set with the parent's until it is told of the fork: what is
        # closed here would be taken off there. gevent.os.fork does the same, a little later;
        # twice does no harm. Not gevent.reinit(): that clears the thread pool away as well, which
        # libuv does not bear here, and which the loop sees to by itself when it runs.
        gevent.get_hub().loop.reinit()
    transport.close_all()
    for heir in heirs:
        heir._after_fork()


if hasattr(os, "register_at_fork"):  # there is no fork elsewhere
    os.register_at_fork(after_in_child=_in_child)
