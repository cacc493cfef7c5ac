"""The pool: which server next. No sockets, no clock: every decision is checked by itself."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gnats.errors import (
    AuthenticationExpiredError,
    AuthorizationError,
    MaxConnectionsError,
    TransportError,
)
from gnats.pool import PoolServer, ServerPool
from gnats.url import ServerURL, parse_url

pytestmark = pytest.mark.sansio

REFUSED = TransportError("connection refused")


def pool_of(*names: str, seed: int = 0, **options: bool | int) -> ServerPool:
    pool = ServerPool(rng=random.Random(seed), **options)  # type: ignore[arg-type]
    for name in names:
        assert pool.add(parse_url(name))
    return pool


def hosts(urls: Iterable[ServerURL]) -> str:
    return " ".join(url.host for url in urls)


def take(pool: ServerPool, **options: bool) -> PoolServer:
    server = pool.next(**options)
    assert server is not None
    return server


def run_cycle(pool: ServerPool, error: Exception = REFUSED) -> str:
    """Fail at every server that this cycle offers; return their names in order."""
    tried = []
    while (server := pool.next()) is not None:
        tried.append(server.url.host)
        pool.failed(server, error)
        assert len(tried) < 1000
    return " ".join(tried)


def connect_to(pool: ServerPool, name: str) -> PoolServer:
    """Make *name* the current server, as an outage that ends there does."""
    pool.begin_outage()
    while (server := take(pool)).url.host != name:
        pool.failed(server, REFUSED)
    pool.succeeded(server)
    return server


# -- order -------------------------------------------------------------------------------


def test_an_empty_pool_has_nobody() -> None:
    pool = ServerPool()
    assert pool.next() is None
    assert pool.exhausted
    assert not pool.has_untried
    assert pool.servers == pool.discovered == []
    assert pool.last_errors() == {}
    assert pool.current is None
    pool.lost()


def test_the_configured_order_is_the_order_of_preference() -> None:
    pool = pool_of("a", "b", "c")
    assert hosts(pool.servers) == "a b c"
    assert take(pool).url.host == "a"


def test_each_cycle_tries_each_server_once_in_order() -> None:
    pool = pool_of("a", "b", "c")
    assert run_cycle(pool) == "a b c"
    assert pool.next() is None
    assert not pool.has_untried
    pool.begin_cycle()
    assert pool.has_untried
    assert run_cycle(pool) == "a b c"


def test_a_failure_moves_to_the_back() -> None:
    pool = pool_of("a", "b", "c")
    pool.failed(take(pool), REFUSED)
    assert hosts(pool.servers) == "b c a"


def test_a_success_does_not_move() -> None:
    pool = pool_of("a", "b", "c")
    pool.failed(take(pool), REFUSED)
    server = take(pool)
    pool.succeeded(server)
    assert pool.current is server
    assert hosts(pool.servers) == "b c a"


def test_a_lost_server_goes_to_the_back_and_is_not_counted() -> None:
    pool = pool_of("a", "b", "c", max_reconnect=1)
    connect_to(pool, "a")
    pool.lost()
    assert pool.current is None
    assert hosts(pool.servers) == "b c a"
    pool.begin_outage()
    assert run_cycle(pool) == "b c a"


def test_a_server_being_tried_is_not_offered_again_in_its_cycle() -> None:
    pool = pool_of("a", "b")
    first = take(pool)
    assert take(pool) is not first
    assert pool.next() is None


# -- failure counts ----------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_reconnect_attempts_each_then_exhausted(limit: int) -> None:
    pool = pool_of("a", "b", max_reconnect=limit)
    pool.begin_outage()
    for _ in range(limit):
        assert not pool.exhausted
        assert pool.has_untried
        assert run_cycle(pool) == "a b"
        pool.begin_cycle()
    assert pool.exhausted
    assert not pool.has_untried
    assert pool.next() is None
    assert hosts(pool.servers) == "a b"  # skipped, never forgotten


def test_minus_one_never_gives_up() -> None:
    pool = pool_of("a", max_reconnect=-1)
    for _ in range(1000):
        assert run_cycle(pool) == "a"
        assert not pool.exhausted
        pool.begin_cycle()


def test_zero_tries_nobody_but_for_the_first_connect() -> None:
    pool = pool_of("a", "b", max_reconnect=0)
    assert pool.exhausted
    assert pool.next() is None
    tried = []
    while (server := pool.next(ignore_limit=True)) is not None:
        tried.append(server.url.host)
        pool.failed(server, REFUSED)
    assert tried == ["a", "b"]
    assert pool.exhausted


def test_each_server_has_its_own_count() -> None:
    pool = pool_of("a", "b", max_reconnect=2)
    server = take(pool)
    pool.failed(server, REFUSED)
    pool.begin_cycle()
    assert run_cycle(pool) == "b a"
    pool.begin_cycle()
    assert run_cycle(pool) == "b"
    pool.begin_cycle()
    assert pool.exhausted


def test_a_success_zeroes_the_record() -> None:
    pool = pool_of("a", max_reconnect=2)
    pool.begin_outage()
    server = take(pool)
    pool.failed(server, AuthorizationError("no"))
    pool.begin_cycle()
    assert take(pool) is server
    pool.succeeded(server)
    assert (server.failures, server.last_error) == (0, None)
    assert pool.last_errors() == {}
    pool.lost()
    pool.begin_outage()
    for _ in range(2):
        assert run_cycle(pool) == "a"
        pool.begin_cycle()
    assert pool.exhausted


def test_a_new_outage_makes_everyone_eligible_again() -> None:
    pool = pool_of("a", "b", max_reconnect=1)
    assert run_cycle(pool) == "a b"
    pool.begin_cycle()
    assert pool.exhausted
    pool.begin_outage()
    assert not pool.exhausted
    assert pool.last_errors() == {}
    assert run_cycle(pool) == "a b"


def test_a_new_outage_after_many_cycles_begins_with_a_fresh_cycle() -> None:
    pool = pool_of("a", "b")
    for _ in range(5):
        run_cycle(pool)
        pool.begin_cycle()
    pool.begin_outage()
    assert run_cycle(pool) == "a b"
    assert pool.next() is None


def test_last_errors_name_each_server_and_its_own_last_failure() -> None:
    pool = pool_of("nats://u:secret@a", "b:1", "c")
    first, second, third = TransportError("1"), TransportError("2"), TransportError("3")
    pool.failed(take(pool), first)
    pool.failed(take(pool), second)
    assert pool.last_errors() == {"nats://a:4222": first, "nats://b:1": second}
    pool.begin_cycle()
    take(pool)  # c
    pool.failed(take(pool), third)  # a
    assert pool.last_errors() == {"nats://a:4222": third, "nats://b:1": second}


# -- the same auth error twice -----------------------------------------------------------


def fail_twice(one: Exception, other: Exception) -> bool:
    pool = pool_of("a")
    server = take(pool)
    pool.failed(server, one)
    assert not server.repeated_auth_error
    pool.begin_cycle()
    pool.failed(take(pool), other)
    return server.repeated_auth_error


@pytest.mark.parametrize("kind", [AuthorizationError, AuthenticationExpiredError])
def test_the_same_auth_error_twice(kind: type[AuthorizationError]) -> None:
    assert fail_twice(kind("Authorization Violation"), kind("Authorization Violation"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (AuthorizationError("x"), AuthorizationError("y")),
        (AuthorizationError("x"), AuthenticationExpiredError("x")),
        (AuthenticationExpiredError("x"), AuthorizationError("x")),
        (AuthorizationError("x"), REFUSED),
        (REFUSED, AuthorizationError("x")),
        (REFUSED, REFUSED),
        (MaxConnectionsError("x"), MaxConnectionsError("x")),
    ],
)
def test_other_pairs_are_no_repeated_auth_error(one: Exception, other: Exception) -> None:
    assert not fail_twice(one, other)


def test_two_servers_with_the_same_auth_error_are_two_first_times() -> None:
    pool = pool_of("a", "b")
    a, b = take(pool), take(pool)
    pool.failed(a, AuthorizationError("x"))
    pool.failed(b, AuthorizationError("x"))
    assert not a.repeated_auth_error
    assert not b.repeated_auth_error


def test_a_success_or_a_new_outage_forgets_auth_errors() -> None:
    pool = pool_of("a")
    server = take(pool)
    for forget in (lambda: pool.succeeded(server), pool.begin_outage):
        pool.failed(server, AuthorizationError("x"))
        pool.failed(server, AuthorizationError("x"))
        assert server.repeated_auth_error
        forget()
        assert not server.repeated_auth_error
        pool.failed(server, AuthorizationError("x"))
        assert not server.repeated_auth_error
        forget()


# -- add ---------------------------------------------------------------------------------


def test_a_server_added_during_a_cycle_gets_its_turn_in_it() -> None:
    pool = pool_of("a", "b")
    assert run_cycle(pool) == "a b"
    assert not pool.has_untried
    assert pool.add(parse_url("c"))
    assert pool.has_untried
    assert run_cycle(pool) == "c"
    pool.begin_cycle()
    assert run_cycle(pool) == "a b c"


def test_a_server_added_when_all_others_are_exhausted() -> None:
    pool = pool_of("a", max_reconnect=1)
    run_cycle(pool)
    assert pool.exhausted
    pool.add(parse_url("b"))
    assert not pool.exhausted
    assert run_cycle(pool) == "b"


def test_adding_a_known_address_updates_it_and_keeps_place_and_record() -> None:
    pool = pool_of("a", "b", max_reconnect=1)
    pool.failed(take(pool), REFUSED)
    assert not pool.add(parse_url("nats://u:p@A:4222"))
    assert hosts(pool.servers) == "b a"
    assert pool.servers[1].user == "u"
    pool.begin_cycle()
    assert run_cycle(pool) == "b"  # a had its one failure


def test_the_port_is_part_of_the_identity() -> None:
    pool = pool_of("a:1")
    assert pool.add(parse_url("a:2"))
    assert len(pool.servers) == 2


# -- replace -----------------------------------------------------------------------------


def test_replace_takes_the_new_order_and_forgets_the_others() -> None:
    pool = pool_of("a", "b", "c")
    pool.replace([parse_url("d"), parse_url("b")])
    assert hosts(pool.servers) == "d b"


def test_replace_keeps_the_records_of_those_kept() -> None:
    pool = pool_of("a", "b", max_reconnect=1)
    run_cycle(pool)
    pool.replace([parse_url("b"), parse_url("c")])
    assert run_cycle(pool) == "c"
    assert list(pool.last_errors()) == ["nats://b:4222", "nats://c:4222"]


def test_replace_keeps_discovered_servers_behind() -> None:
    pool = pool_of("a")
    connect_to(pool, "a")
    pool.discover(["x", "y"])
    pool.replace([parse_url("b"), parse_url("y")])
    assert hosts(pool.servers) == "b y x"
    assert hosts(pool.discovered) == "x"
    pool.discover(["z"])
    assert hosts(pool.servers) == "b y z"


def test_replace_leaves_the_current_link_alone() -> None:
    pool = pool_of("a")
    server = connect_to(pool, "a")
    pool.replace([parse_url("b")])
    assert pool.current is server
    pool.lost()
    assert pool.current is None
    assert hosts(pool.servers) == "b"


def test_a_server_replaced_while_it_is_tried_does_not_come_back() -> None:
    pool = pool_of("a")
    server = take(pool)
    pool.replace([parse_url("b")])
    pool.failed(server, REFUSED)
    assert hosts(pool.servers) == "b"
    assert run_cycle(pool) == "b"


def test_replace_takes_over_new_credentials() -> None:
    pool = pool_of("nats://old:x@a")
    pool.replace([parse_url("nats://new:y@a")])
    assert (pool.servers[0].user, pool.servers[0].password) == ("new", "y")


def test_randomize_shuffles_what_replace_gets_and_nothing_is_lost() -> None:
    urls = [parse_url(f"h{n}") for n in range(10)]
    orders = set()
    for seed in range(20):
        pool = pool_of(seed=seed, randomize=True)
        pool.replace(urls)
        assert sorted(hosts(pool.servers).split()) == sorted(url.host for url in urls)
        orders.add(hosts(pool.servers))
    assert len(orders) > 10
    same = [pool_of(seed=7, randomize=True) for _ in range(2)]
    for pool in same:
        pool.replace(urls)
    assert same[0].servers == same[1].servers
    assert [url.host for url in urls] == [f"h{n}" for n in range(10)]  # the caller's list is his


def test_without_randomize_replace_keeps_the_order() -> None:
    urls = [parse_url(f"h{n}") for n in range(10)]
    pool = pool_of(seed=7)
    pool.replace(urls)
    assert pool.servers == urls


# -- discover ----------------------------------------------------------------------------


def test_discovered_servers_join_behind_and_are_returned() -> None:
    pool = pool_of("a", "b")
    connect_to(pool, "a")
    new = pool.discover(["x:1", "a:4222", "y:2"])
    assert sorted(url.address for url in new) == ["x:1", "y:2"]
    assert hosts(pool.servers)[:4] == "a b "
    assert sorted(url.address for url in pool.discovered) == ["x:1", "y:2"]
    assert pool.discover(["x:1", "y:2"]) == []
    assert len(pool.servers) == 4


def test_discovered_servers_are_shuffled_among_themselves() -> None:
    addresses = [f"x{n}" for n in range(10)]
    orders = set()
    for seed in range(20):
        pool = pool_of("a", "b", seed=seed)
        pool.discover(addresses)
        names = hosts(pool.servers).split()
        assert names[:2] == ["a", "b"]
        assert sorted(names[2:]) == addresses
        orders.add(tuple(names))
    assert len(orders) > 10
    one, other = pool_of(seed=3), pool_of(seed=3)
    one.discover(addresses)
    other.discover(addresses)
    assert one.servers == other.servers


def test_vanished_discovered_servers_are_dropped() -> None:
    pool = pool_of("a")
    connect_to(pool, "a")
    pool.discover(["x", "y"])
    assert hosts(pool.discover(["y", "z"])) == "z"
    assert hosts(pool.servers) == "a y z"


def test_an_info_without_urls_says_nothing() -> None:
    pool = pool_of("a")
    pool.discover(["x"])
    assert pool.discover([]) == []
    assert hosts(pool.servers) == "a x"


def test_a_configured_server_is_never_dropped_whatever_is_announced() -> None:
    pool = pool_of("a", "b")
    pool.discover(["b", "x"])
    pool.discover(["x"])
    pool.discover(["y"])
    assert hosts(pool.servers) == "a b y"
    assert hosts(pool.discovered) == "y"


def test_a_discovered_server_that_a_person_adds_becomes_configured() -> None:
    pool = pool_of("a")
    pool.discover(["x", "y"])
    assert not pool.add(parse_url("x"))
    pool.discover(["z"])
    assert sorted(hosts(pool.servers).split()) == ["a", "x", "z"]
    assert hosts(pool.discovered) == "z"


def test_the_current_server_is_never_dropped_while_it_is_current() -> None:
    pool = pool_of("a")
    pool.discover(["x", "y"])
    connect_to(pool, "x")
    pool.discover(["z"])
    assert sorted(hosts(pool.servers).split()) == ["a", "x", "z"]
    pool.lost()
    pool.discover(["z"])
    assert sorted(hosts(pool.servers).split()) == ["a", "z"]


def test_ignore_discovered() -> None:
    pool = pool_of("a", ignore_discovered=True)
    assert pool.discover(["x", "y"]) == []
    assert hosts(pool.servers) == "a"


def test_discovered_servers_inherit_the_credentials_of_who_announced_them() -> None:
    pool = pool_of("nats://u:p@a", "nats://t@b")
    connect_to(pool, "a")
    pool.discover(["x"])
    connect_to(pool, "b")
    pool.discover(["x", "y"])
    by_host = {url.host: url for url in pool.servers}
    assert (by_host["x"].user, by_host["x"].password, by_host["x"].token) == ("u", "p", None)
    assert (by_host["y"].user, by_host["y"].password, by_host["y"].token) == (None, None, "t")
    connect_to(pool, "y")
    pool.discover(["x", "y", "z"])
    assert {url.host: url for url in pool.servers}["z"].token == "t"


def test_a_known_server_keeps_its_own_credentials() -> None:
    pool = pool_of("nats://u:p@a", "b")
    connect_to(pool, "a")
    pool.discover(["b", "a"])
    assert [url.user for url in pool.servers] == ["u", None]


def test_addresses_that_cannot_be_read_are_passed_over() -> None:
    pool = pool_of("a")
    bad = ["", " ", "x:0", "x:99999", "x:abc", "http://x", "[::1", "x y", ":4222", "x/y"]
    new = pool.discover([*bad, "10.0.0.1:4222", "[::1]:4223"])
    assert sorted(url.address for url in new) == ["10.0.0.1:4222", "[::1]:4223"]


def test_an_address_announced_twice_is_one_server() -> None:
    pool = pool_of("a")
    assert len(pool.discover(["x", "x:4222", "X", "nats://x"])) == 1
    assert hosts(pool.servers) == "a x"


def test_a_server_discovered_during_an_outage_gets_its_turn() -> None:
    pool = pool_of("a", max_reconnect=1)
    assert run_cycle(pool) == "a"
    pool.discover(["x"])
    assert pool.has_untried
    assert run_cycle(pool) == "x"


def test_a_discovered_server_that_fails_stays_until_it_vanishes() -> None:
    pool = pool_of("a", max_reconnect=1)
    pool.discover(["x"])
    run_cycle(pool)
    assert hosts(pool.servers) == "a x"
    pool.begin_outage()
    assert run_cycle(pool) == "a x"


# -- what is shown -----------------------------------------------------------------------


def test_no_secret_in_repr() -> None:
    pool = pool_of("nats://user:hunter2@a", "nats://t0ken@b")
    for _ in range(2):
        text = repr(take(pool))
        assert "hunter2" not in text
        assert "t0ken" not in text


def test_servers_is_a_copy() -> None:
    pool = pool_of("a")
    pool.servers.clear()
    assert hosts(pool.servers) == "a"


# -- random walks ------------------------------------------------------------------------

_NAMES = st.sampled_from([f"h{n}" for n in range(6)])


class Walk(RuleBasedStateMachine):
    """Any sequence of events; the promises of DESIGN 3.2 hold at every step."""

    @initialize(limit=st.integers(-1, 3), seed=st.integers(0, 99))
    def begin(self, limit: int, seed: int) -> None:
        self.limit = limit
        self.pool = ServerPool(limit, rng=random.Random(seed))
        self.configured: set[str] = set()
        self.failures: dict[str, int] = {}
        self.tried: set[str] = set()  # in this cycle
        self.trying: PoolServer | None = None

    def addresses(self) -> list[str]:
        return [url.host for url in self.pool.servers]

    @rule(name=_NAMES)
    def add(self, name: str) -> None:
        known = name in self.addresses()
        assert self.pool.add(parse_url(name)) == (not known)
        self.configured.add(name)

    @rule(names=st.lists(_NAMES, min_size=1, unique=True))
    def replace(self, names: list[str]) -> None:
        self.pool.replace([parse_url(name) for name in names])
        assert self.addresses()[: len(names)] == names
        self.configured = set(names)
        self.forget_those_gone()

    @rule(names=st.lists(_NAMES, min_size=1))
    def discover(self, names: list[str]) -> None:
        before = self.addresses()
        new = self.pool.discover(names)
        after = self.addresses()
        assert after[len(after) - len(new) :] == [
            name for name in after if name in {url.host for url in new}
        ]
        current = {self.pool.current.url.host} if self.pool.current else set()
        assert set(after) >= set(names)
        assert set(after) <= set(names) | self.configured | current
        assert [name for name in before if name in after] == after[: len(after) - len(new)]
        self.forget_those_gone()

    def forget_those_gone(self) -> None:
        there = set(self.addresses())
        self.failures = {name: n for name, n in self.failures.items() if name in there}
        self.tried &= there

    @precondition(lambda self: self.trying is None)
    @rule()
    def next(self) -> None:
        server = self.pool.next()
        open_to = [
            name
            for name in self.addresses()
            if name not in self.tried
            and (self.limit < 0 or self.failures.get(name, 0) < self.limit)
        ]
        assert (server.url.host if server else None) == (open_to[0] if open_to else None)
        if server is not None:
            self.tried.add(server.url.host)
            self.trying = server

    @precondition(lambda self: self.trying is not None)
    @rule()
    def fail(self) -> None:
        assert self.trying is not None
        name, there = self.trying.url.host, self.is_still_there(self.trying)
        self.pool.failed(self.trying, REFUSED)
        if there:
            self.failures[name] = self.failures.get(name, 0) + 1
            assert self.addresses()[-1] == name
        self.trying = None

    def is_still_there(self, server: PoolServer) -> bool:
        return any(url is server.url for url in self.pool.servers)

    @precondition(lambda self: self.trying is not None and self.pool.current is None)
    @rule()
    def succeed(self) -> None:
        assert self.trying is not None
        if self.is_still_there(self.trying):
            self.failures.pop(self.trying.url.host, None)
        self.pool.succeeded(self.trying)
        assert self.pool.current is self.trying
        self.trying = None

    @precondition(lambda self: self.pool.current is not None and self.trying is None)
    @rule()
    def lose(self) -> None:
        self.pool.lost()
        self.pool.begin_outage()
        self.failures, self.tried = {}, set()

    @precondition(lambda self: self.trying is None)
    @rule()
    def cycle(self) -> None:
        self.pool.begin_cycle()
        self.tried = set()

    @invariant()
    def nobody_is_there_twice(self) -> None:
        names = self.addresses()
        assert len(names) == len(set(names))

    @invariant()
    def configured_and_discovered_are_everyone(self) -> None:
        discovered = {url.host for url in self.pool.discovered}
        assert self.configured <= set(self.addresses())
        assert discovered == set(self.addresses()) - self.configured

    @invariant()
    def exhausted_means_nobody_is_eligible(self) -> None:
        spent = [0 <= self.limit <= self.failures.get(name, 0) for name in self.addresses()]
        assert self.pool.exhausted == all(spent)


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


# -- a choice from outside -----------------------------------------------------------------


def test_take_marks_a_server_as_tried_and_refuses_what_may_not_be() -> None:
    pool = ServerPool(max_reconnect=1)
    a, b, c = (parse_url(f"{name}:1") for name in "abc")
    pool.replace([a, b])
    assert pool.eligible == [a, b]
    taken = pool.take(b)
    assert taken is not None
    assert taken.url == b
    assert pool.take(c) is None
    first = pool.next()
    assert first is not None
    assert first.url == a
    assert pool.next() is None  # b had its turn
    pool.failed(taken, OSError())
    assert pool.eligible == [a]
    assert pool.take(b) is None


@pytest.mark.parametrize(
    ("current", "announced", "expected"),
    [
        ("tls://a.example:4222", "10.0.0.1:4222", ("tls", "a.example")),
        ("tls://a.example:4222", "b.example:4222", ("tls", None)),
        ("tls://10.0.0.9:4222", "10.0.0.1:4222", ("tls", None)),
        ("nats://a.example:4222", "[::1]:4222", ("nats", "a.example")),
        ("wss://a.example:443/nats", "10.0.0.1:443", ("wss", "a.example")),
    ],
)
def test_a_discovered_server_inherits_how_it_is_reached(
    current: str, announced: str, expected: tuple[str, str | None]
) -> None:
    pool = ServerPool()
    pool.replace([parse_url(current)])
    server = pool.next()
    assert server is not None
    pool.succeeded(server)
    (new,) = pool.discover([announced])
    found = next(url for url in pool.servers if url.address == new.address)
    assert (found.scheme, found.tls_name) == expected
    assert found.path == server.url.path
    again = pool.take(found)
    assert again is not None
    pool.succeeded(again)
    pool.discover([announced, "10.0.0.2:4222"])
    last = next(url for url in pool.servers if url.host == "10.0.0.2")
    assert last.tls_name == (expected[1] or (None if found.host[0].isdigit() else found.host))
