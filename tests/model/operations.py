"""The operations, and what may come of each.

An operation is a name and arguments, nothing of it refers to another operation: what a list does
without some of its operations is defined, so a failing list can be made shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent import GreenletExit

import gnats
from gnats.errors import (
    BadSubscriptionError,
    ConnectionClosedError,
    ConnectionReconnectingError,
    DrainTimeoutError,
    FlushInterruptedError,
    NoRespondersError,
    OutboundBufferLimitError,
    TimeoutError,
)

from .known import EARLY, Job, Sub, Topic, Trouble, Watch
from .world import MANY


class Operations(Watch):
    """A method ``do_<name>`` for each."""

    # -- publish --------------------------------------------------------------------------

    def publish(self, size: int, headers: bool = False, reply: bool = False) -> bool:
        """One message; its number is in its subject. Whether it was accepted."""
        subject = f"{self.world.name}.p.{next(self.numbers)}"
        accepted = False
        try:
            self.conn.publish(
                subject,
                b"x" * size,
                reply=f"{self.world.name}.nobody" if reply else "",
                headers={"Number": subject, "Size": str(size)} if headers else None,
            )
            accepted = True
        except OutboundBufferLimitError as exc:
            self._limited(size, exc)
        except gnats.errors.ConnectionDrainingError:
            self._expect(self.ending, "draining before the end")
        finally:
            self._book(subject, accepted)
        if accepted and self.conn.is_reconnecting:
            held = self.conn.stats.buffered_bytes
            self._expect(held <= self.setup.buf, f"publish({size}) was accepted, {held} are held")
        return accepted

    def _book(self, subject: str, accepted: bool) -> None:
        if accepted:
            self.place[subject] = len(self.place)
        else:
            self.refused.add(subject)

    def _limited(
        self, size: int, error: OutboundBufferLimitError, timeout: float | None = None
    ) -> None:
        """There was no room: rightly so? *timeout* is the caller's own, if that is over."""
        in_hub = gevent.getcurrent() is gevent.get_hub()
        if self.setup.publish_timeout is not None or timeout is not None or in_hub:
            return
        self._expect(not self.conn.is_connected, f"publish raised {error!r} over a link")
        held = self.conn.stats.buffered_bytes
        self._expect(held + size + 300 > self.setup.buf, f"publish({size}): {error!r} at {held}")

    def do_publish(self, size: int, headers: bool = False, reply: bool = False) -> None:
        # Over a silent link it waits for room as long as the link is borne.
        wait = not self.setup.patient
        self._go("publish", 1.0, wait, self.publish, size, headers, reply)

    def do_hub_publish(self, size: int) -> None:
        """In a callback of the hub, where nothing may wait."""
        gevent.get_hub().loop.run_callback(self._hub_publish, size)
        gevent.sleep(0.001)

    def _hub_publish(self, size: int) -> None:
        try:
            self.publish(size)
        except Exception as exc:
            self.wrong.append(f"publish in the hub raised {exc!r}")

    def do_burst(self, greenlets: int, count: int, size: int, pause: bool, wait: bool) -> None:
        def burst() -> None:
            for _ in range(count):
                self.publish(size)
                if pause:
                    gevent.sleep(0)

        for number in range(greenlets):
            last = number == greenlets - 1
            self._go("burst", 20.0, wait and last and not self.setup.patient, burst)

    # -- subscriptions --------------------------------------------------------------------

    def do_subscribe(
        self, kind: str, queue: bool, max_msgs: int, limit: int, mood: str, join: bool
    ) -> None:
        queued = [topic for topic in self.topics if topic.subs[0].queue]
        if queue and join and queued:
            topic = queued[-1]
        else:
            topic = Topic(f"{self.world.name}.s.{len(self.topics)}")
            self.topics.append(topic)
        sub = Sub(topic, kind, "group" if queue else "", max_msgs, limit > 0)
        handled = kind in ("handler", "concurrent")
        sub.real = self.conn.subscribe(
            topic.subject,
            sub.queue,
            (lambda msg: self._handle(sub, mood, msg)) if handled else None,
            max_msgs=max_msgs,
            pending_msgs_limit=limit or None,
            concurrency=3 if kind == "concurrent" else 1,
        )
        sub.leaves = mood == "leave"
        topic.subs.append(sub)
        self.subs.append(sub)
        self.changes += 1
        if kind == "loop":
            self._wait_for_the_end("for", self._loop, sub)

    def _handle(self, sub: Sub, mood: str, msg: gnats.Msg) -> None:
        self._received(sub, msg)
        if msg.reply:
            accepted = False
            try:
                msg.respond(b"answer")
                accepted = True
            except OutboundBufferLimitError as exc:
                self._limited(6, exc)
            except (ConnectionClosedError, gnats.errors.ConnectionDrainingError) as exc:
                self._expect(self.ending, f"respond: {exc!r} before the end")
            finally:
                self._book(msg.reply, accepted)
        if mood == "block":
            gevent.sleep(0.003)
        elif mood == "ask" and len(sub.seen) % 5 == 1:
            self._request("echo", 0.05)
        elif mood == "leave" and len(sub.seen) == 3 and sub.is_live and not self.ending:
            sub.real.unsubscribe()
            self.changes += 1
            self._given_up(sub)
        elif mood == "raise" and len(sub.seen) % 3 == 1 and not self.conn.is_closed:
            self.raised.append(f"handler {len(self.raised)}")
            raise Trouble(self.raised[-1])

    def _received(self, sub: Sub, msg: gnats.Msg) -> None:
        subject, _, number = msg.data.decode().partition(":")
        self._expect(
            subject == msg.subject == sub.topic.subject and msg.sub is sub.real,
            f"{sub.real!r} received {msg!r}",
        )
        told = int(number)
        before = sub.topic.seen if sub.queue else sub.seen
        self._expect(told not in before, f"{sub.real!r} received {told} twice")
        if sub.kind != "concurrent" and sub.seen:
            self._expect(told > sub.seen[-1], f"{sub.real!r} received {told} after {sub.seen[-1]}")
        sub.seen.append(told)
        sub.topic.seen.add(told)
        if sub.max:
            self._expect(len(sub.seen) <= sub.max, f"{sub.real!r}: {len(sub.seen)} of {sub.max}")

    def _loop(self, sub: Sub) -> None:
        for msg in sub.real:
            self._received(sub, msg)

    def _pick(self, which: int, *kinds: str, live: bool = True) -> Sub | None:
        found = [
            sub
            for sub in self.subs
            if (not live or sub.is_live) and (not kinds or sub.kind in kinds)
        ]
        return found[which % len(found)] if found else None

    def do_unsubscribe(self, which: int, more: int) -> None:
        sub = self._pick(which)
        if sub is None:
            return
        received = sub.real.received
        limit = max(1, received + more) if more else 0
        if 0 < limit <= received:  # they have come: it ends now, and keeps what is queued
            sub.real.unsubscribe(limit)
            self.changes += 1
            sub.ended, sub.told, sub.routed = True, [], []
            return
        if limit and sub.max and limit > sub.max:
            return  # to raise a limit is a race: the server may have reached the lower one
        sub.real.unsubscribe(limit)
        self.changes += 1
        if limit:
            sub.max = limit
        else:
            self._given_up(sub)

    def _given_up(self, sub: Sub) -> None:
        sub.ended = sub.given_up = True

    def do_drain_sub(self, which: int, timeout: float, wait: bool) -> None:
        sub = self._pick(which)
        if sub is not None:
            self._go("Subscription.drain", timeout, wait, self._drain_sub, sub, timeout)

    def _drain_sub(self, sub: Sub, timeout: float) -> None:
        if not sub.is_live:
            return
        began, link = monotonic(), self.link()
        self.changes += 1
        sub.ended = True
        sub.told = []  # may come behind the UNSUB
        drained = False
        try:
            sub.real.drain(timeout)
            drained = self.link() == link and link is not None
        except DrainTimeoutError:
            self._timed_out("Subscription.drain", timeout, began)
        except BadSubscriptionError:
            # It ended meanwhile, by its limit.
            ended = self.ending or (sub.max and sub.real.received >= sub.max)
            self._expect(ended, f"{sub.real!r} has ended by itself")
        finally:
            self._within("Subscription.drain", timeout, began)
            if not drained:
                self._given_up(sub)

    def do_next_msg(self, which: int, timeout: float, wait: bool) -> None:
        sub = self._pick(which, "next", live=False)
        if sub is not None:
            self._go("next_msg", timeout, wait, self._next_msg, sub, timeout)

    def _next_msg(self, sub: Sub, timeout: float) -> None:
        began = monotonic()
        try:
            self._received(sub, sub.real.next_msg(timeout))
        except TimeoutError:
            self._timed_out("next_msg", timeout, began)
        except BadSubscriptionError:
            ended = self.ending or not sub.is_live
            self._expect(ended, f"next_msg: {sub.real!r} has ended by itself")
        self._within("next_msg", timeout, began)

    # -- from outside ---------------------------------------------------------------------

    def do_tell(self, which: int, count: int, reply: bool) -> None:
        sub = self._pick(which, live=False)
        if sub is not None:
            self._tell(sub.topic, count, reply)
            gevent.sleep(0)

    def _tell(self, topic: Topic, count: int, reply: bool = False) -> None:
        # A queue group hands a message to one member, perhaps not to the first.
        asks = reply and any(sub.kind in ("handler", "concurrent") for sub in topic.subs)
        link = self.link()
        for _ in range(count):
            topic.told += 1
            for sub in topic.subs:
                # A queue group may have a member left behind at a half-open link.
                if link is not None and sub.known_on == link and sub.is_live and not sub.queue:
                    sub.told.append((topic.told, link))
            answer = f"{self.world.name}.p.{next(self.numbers)}" if asks else ""
            self.world.outside.tell(topic.subject, f"{topic.subject}:{topic.told}", answer)

    def _sync(self, timeout: float) -> bool:
        """The outsider's flush: what was told is routed."""
        told = [(sub, len(sub.told)) for sub in self.subs]
        outside = self.world.outside
        if self.world.server.is_paused or not outside.sync(timeout):
            return False
        for sub, count in told:
            sub.routed += sub.told[:count]
            del sub.told[:count]
        return True

    def do_sure_tell(self, which: int, count: int) -> None:
        """With a flush before, and one behind."""
        sub = self._pick(which)
        if sub is not None:
            self._confirm(0.1)
            self._tell(sub.topic, count)
            self._sync(0.1)
            self._confirm(0.1)

    # -- round trips ----------------------------------------------------------------------

    def _confirm(self, timeout: float | None) -> bool:
        """A flush, and what it proves when it succeeds over one and the same link."""
        began, link = monotonic(), self.link()
        stats, known = self.conn.stats, len(self.place)
        routed = [(sub, len(sub.routed)) for sub in self.subs]
        try:
            self.conn.flush(timeout)
        except TimeoutError:
            self._timed_out("flush", timeout, began)
            return False
        except FlushInterruptedError as exc:
            self._expect(not self.setup.keep, f"flush under replay_unconfirmed: {exc!r}")
            return False
        finally:
            self._within("flush", timeout, began)
        self.books.flushed(stats)
        self.flushed.append((known, stats.uncertain + stats.dropped))
        if link is None or self.link() != link:
            return False
        for sub, count in routed:
            sub.known_on = link
            # Emptied, if it was told to end meanwhile.
            sub.required.update(number for number, over in sub.routed[:count] if over == link)
        return True

    def do_flush(self, timeout: float, wait: bool) -> None:
        self._go("flush", timeout, wait, self._confirm, timeout)

    def do_rtt(self, timeout: float) -> None:
        self._go("rtt", timeout, True, self._rtt, timeout)

    def _rtt(self, timeout: float) -> None:
        began = monotonic()
        try:
            took = self.conn.rtt(timeout)
            self._expect(0 < took <= monotonic() - began, f"rtt said {took}")
        except TimeoutError:
            self._timed_out("rtt", timeout, began)
        except (ConnectionReconnectingError, FlushInterruptedError):
            pass
        self._within("rtt", timeout, began)

    # -- requests -------------------------------------------------------------------------

    def do_request(self, kind: str, timeout: float, count: int, wait: bool) -> None:
        """One, or several at once, the others a little later and of another kind."""
        for number in range(count - 1):
            other = "slow" if number % 2 else "echo"
            self._go("request", 0.5, False, self._request, other, 0.02 * number)
        self._go("request", timeout, wait, self._request, kind, timeout)

    def _request(self, kind: str, timeout: float | None) -> bool:
        number = next(self.numbers)
        subject = f"{self.world.name}.q.{kind}.{number}"
        began = monotonic()
        self.asked_maybe += 1
        accepted: bool | None = None  # nobody knows
        answered = False
        try:
            reply = self.conn.request(subject, str(number), timeout)
            accepted = answered = True
            self._expect(reply.data == f"re:{number}".encode(), f"{subject} was answered {reply!r}")
        except NoRespondersError as exc:
            accepted = True
            self._expect(kind == "none" or self.setup.kills, f"{subject}: {exc!r}")
        except TimeoutError as exc:
            accepted = not isinstance(exc.__cause__, OutboundBufferLimitError)
            self._timed_out("request", timeout, began)
        except OutboundBufferLimitError as exc:
            accepted = False
            self._limited(len(subject), exc, _if_over(timeout, began))
        except gnats.errors.ConnectionDrainingError:
            self._expect(self.ending, "draining before the end")
        finally:
            self._asked(subject, accepted)
        self._within("request", timeout, began)
        return answered

    def _asked(self, subject: str, accepted: bool | None) -> None:
        if accepted is not None:
            self.asked_maybe -= 1
            self.asked_sure += accepted
            if not accepted:
                self.refused.add(subject)

    def do_request_many(
        self, kind: str, timeout: float, stall: float | None, max_msgs: int, wait: bool
    ) -> None:
        args = kind, timeout, stall, max_msgs
        self._go("request_many", timeout, wait, self._request_many, *args)

    def _request_many(self, kind: str, timeout: float, stall: float | None, most: int) -> None:
        number = next(self.numbers)
        subject = f"{self.world.name}.q.{kind}.{number}"
        began = monotonic()
        self.asked_maybe += 1
        accepted: bool | None = None
        got: list[int] = []
        try:
            replies = self.conn.request_many(
                subject, str(number), timeout, stall=stall, max_msgs=most
            )
            accepted = True
            for reply in replies:
                words = reply.data.decode().split(":")
                self._expect(words[:2] == ["re", str(number)], f"{subject} was answered {reply!r}")
                got.append(int(words[2]))
        except NoRespondersError as exc:
            self._expect(kind == "none" or self.setup.kills, f"{subject}: {exc!r}")
        except TimeoutError as exc:  # without room for the request it is not sent
            accepted = False
            self._expect(isinstance(exc.__cause__, OutboundBufferLimitError), f"{exc!r}")
            self._timed_out("request_many", timeout, began)
        except OutboundBufferLimitError as exc:
            accepted = False
            self._limited(len(subject), exc, _if_over(timeout, began))
        except gnats.errors.ConnectionDrainingError:
            self._expect(self.ending, "draining before the end")
        finally:
            self._asked(subject, accepted)
        self._within("request_many", timeout, began)
        # Under replay_unconfirmed the request may have come twice, and so may its answers.
        self._expect(self.setup.keep or got == sorted(set(got)), f"{subject}: answers {got}")
        fits = self.setup.keep or len(got) <= MANY
        self._expect(fits and (not most or len(got) <= most), f"{subject}: {len(got)} answers")

    # -- calls without a time-out ---------------------------------------------------------

    def _wait_for_the_end(self, name: str, call: Callable[..., Any], *args: Any) -> None:
        self.waiters.append(Job(name, gevent.spawn(self._guarded, name, call, *args), 0.0))

    def do_wait_for_ever(self, kind: str) -> None:
        """A call without a time-out; close or drain must end it."""
        if kind == "request":
            self._wait_for_the_end("request(None)", self._request, "mute", None)
        elif kind == "flush":  # this one ends with the outage, or the link
            self._go("flush(None)", 0.0, False, self._confirm, None)
        elif kind == "status":
            self._wait_for_the_end("wait_for_status", self.conn.wait_for_status, "closed")
        else:
            self.do_subscribe("next", False, 0, 0, "", False)
            self._wait_for_the_end("next_msg(None)", self._next_for_ever, self.subs[-1])

    def _next_for_ever(self, sub: Sub) -> None:
        try:
            while True:
                self._received(sub, sub.real.next_msg(None))
        except BadSubscriptionError:
            self._expect(not sub.is_live or self.ending, f"{sub.real!r} has ended by itself")

    # -- struck greenlets -----------------------------------------------------------------

    def do_strike(self, what: str, after: float, kill: bool) -> None:
        """Kill a greenlet, or have a gevent.Timeout strike it, in the middle of a call."""
        call = self._struck_call(what)
        if call is None:
            return

        def struck() -> None:
            with gevent.Timeout(after, False):
                call()

        job = self._go(f"struck {what}", 2.0, False, call if kill else struck)
        gevent.sleep(after)
        if kill:
            job.greenlet.kill(GreenletExit, block=False)
        job.check()

    def _struck_call(self, what: str) -> Callable[[], object] | None:
        if what == "publish":
            return lambda: [self.publish(65536) for _ in range(40)]
        if what == "request":
            return lambda: self._request("slow", 2.0)
        if what == "request_many":
            return lambda: self._request_many("many", 0.5, None, 0)
        if what == "status":
            return lambda: self.conn.wait_for_status("closed", 2.0)
        if what in ("flush", "rtt"):
            ask: Callable[[float], object] = self._confirm if what == "flush" else self._rtt
            return lambda: ask(2.0)
        if what == "next_msg":
            reader = self._pick(0, "next", live=False)
            return reader and (lambda: self._next_msg(reader, 2.0))
        sub = self._pick(0)
        return sub and (lambda: self._drain_sub(sub, 2.0))

    # -- what else a user does ------------------------------------------------------------

    def do_force_reconnect(self) -> None:
        self.conn.force_reconnect()

    def do_servers(self, how: str) -> None:
        one, two = self.world.urls
        dead = self.world.dead_url
        if how == "add dead":
            self.conn.add_server(dead)
        elif how == "add":
            self.conn.add_server(two)
        else:
            known = {"one": [one], "two": [two, one], "dead first": [dead, one], "dead": [dead]}
            self.conn.set_servers(known[how])

    def do_mood(self, callback: str, mood: str) -> None:
        """The next call of *callback* raises, blocks, or publishes."""
        self.moods[callback] = mood

    def do_wait(self, seconds: float) -> None:
        gevent.sleep(seconds)

    # -- faults ---------------------------------------------------------------------------

    def do_fault(self, name: str, args: tuple[Any, ...] = ()) -> None:
        """What ChaosProxy can do, to all links of all proxies."""
        self.world.hurt(lambda proxy: getattr(proxy, name)(*args))
        gevent.sleep(0)

    def do_fault_on_new(self, name: str, args: tuple[Any, ...]) -> None:
        """The same to every link from its first byte, until the proxies are healed."""
        self.world.hurt(
            lambda proxy: proxy.on_link(lambda link: getattr(link, name)(*args)),
        )

    def do_pause(self) -> None:
        if self.world.server.is_running and not self.world.server.is_paused:
            self.world.server.pause()

    def do_resume(self) -> None:
        if self.world.server.is_paused:
            self.world.server.resume()

    def do_kill(self) -> None:
        if self.world.server.is_running:
            self.world.kill()

    def do_revive(self) -> None:
        if not self.world.server.is_running:
            self.world.revive()

    # -- the server is asked --------------------------------------------------------------

    def do_census(self) -> None:
        self._go("census", 10.0, True, self._census)

    def _census(self) -> bool:
        """Compare what the server holds for the present link; whether that was possible."""
        link, changes = self.link(), self.changes
        if link is None or not self.world.server.is_running or not self._sync(1.0):
            return False
        if not self._confirm(1.0):
            return False
        client_id = self.conn.client_id
        try:
            held = [one for one in self.world.connections() if one["cid"] == client_id]
        except OSError:
            return False
        live = [sub for sub in self.subs if sub.is_live]
        if self.link() != link or self.changes != changes:
            return False
        details = held[0].get("subscriptions_list_detail", []) if held else []
        inboxes = [one for one in details if one["subject"].startswith("_INBOX.")]
        found = sorted(
            (one["subject"], one.get("qgroup", ""), int(one["sid"]), _remaining(one))
            for one in details
            if one not in inboxes
        )
        wanted = sorted(
            (
                sub.topic.subject,
                sub.queue,
                sub.real.sid,
                sub.max - sub.real.received if sub.max else None,
            )
            for sub in live
        )
        key: Callable[[tuple[Any, ...]], str] = repr
        self._expect(
            sorted(found, key=key) == sorted(wanted, key=key),
            f"the server holds {found}, and should hold {wanted}",
        )
        self._expect(len(inboxes) <= 1, f"the server holds {inboxes}")
        return True


def _if_over(timeout: float | None, began: float) -> float | None:
    return timeout if timeout is not None and monotonic() >= began + timeout - EARLY else None


def _remaining(detail: dict[str, Any]) -> int | None:
    most = detail.get("max", 0)
    return most - detail.get("msgs", 0) if most else None
