"""The pool against real servers: order, rotation, discovery, lame ducks, sets that change."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest

import gnats
from gnats.errors import TransportError
from gnats.testing import FakeClient, FakeServer, NatsCluster, NatsServer, wait_until

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_jitter": 0.0, "max_reconnect": -1}


@pytest.fixture
def three() -> Iterator[list[NatsServer]]:
    """Three servers that know nothing of each other."""
    with NatsServer() as one, NatsServer() as two, NatsServer() as three:
        yield [one, two, three]


def urls(servers: Any) -> list[str]:
    return [str(server) for server in servers]


def current(conn: gnats.Connection) -> str:
    return str(conn.connected_url)


# -- order ----------------------------------------------------------------------------------------


def test_the_configured_order_is_the_order_of_preference(three: list[NatsServer]) -> None:
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        conn = gnats.connect([three[index].url for index in order])
        assert current(conn) == three[order[0]].url
        conn.close()


def test_rotation_visits_all_in_order(three: list[NatsServer]) -> None:
    """The lost one goes to the back; nobody is passed over."""
    conn = gnats.connect([server.url for server in three], **FAST)
    for turn in range(1, 10):
        conn.force_reconnect()
        wait_until(lambda turn=turn: conn.stats.reconnects == turn)
        assert current(conn) == three[turn % 3].url
        assert urls(conn.servers) == [three[(turn + n) % 3].url for n in range(3)]
    conn.close()


def test_a_dead_server_in_the_row_is_passed_over(three: list[NatsServer]) -> None:
    conn = gnats.connect([server.url for server in three], **FAST)
    three[1].kill()
    three[0].kill()
    wait_until(lambda: current(conn) == three[2].url)
    three[0].start()
    three[1].start()
    three[2].kill()
    # 0 was lost first, 1 failed after that: 0 is next.
    wait_until(lambda: conn.stats.reconnects == 2)
    assert current(conn) == three[0].url
    conn.close()


def test_randomized_servers_are_a_permutation_and_not_always_the_same() -> None:
    listed = [f"nats://127.0.0.1:{port}" for port in range(20001, 20011)]
    orders = set()
    for _ in range(20):
        conn = gnats.Connection(servers=listed, randomize_servers=True)
        assert sorted(urls(conn.servers)) == listed
        orders.add(tuple(urls(conn.servers)))
    assert len(orders) > 1
    assert urls(gnats.Connection(servers=listed).servers) == listed


def test_randomized_servers_stay_random_in_connect(three: list[NatsServer]) -> None:
    """Also when the servers are given to connect()."""
    first = {three[0].url}
    for _ in range(40):
        conn = gnats.connect([server.url for server in three], randomize_servers=True)
        first.add(current(conn))
        conn.close()
        if len(first) > 1:
            break
    assert len(first) > 1


# -- a set that changes -------------------------------------------------------------------------


def test_set_servers_leaves_the_link_and_counts_from_the_next_loss(
    three: list[NatsServer],
) -> None:
    conn = gnats.connect(three[0].url, **FAST)
    conn.set_servers([three[1].url, three[2].url])
    assert urls(conn.servers) == [three[1].url, three[2].url]
    conn.flush()
    assert conn.stats.disconnects == 0
    assert current(conn) == three[0].url
    three[0].kill()
    wait_until(lambda: conn.is_connected and conn.stats.reconnects == 1)
    assert current(conn) == three[1].url
    assert three[0].url not in urls(conn.servers)  # replaced: it does not come back
    conn.close()


def test_add_server_joins_at_the_back(three: list[NatsServer]) -> None:
    conn = gnats.connect(three[0].url, **FAST)
    conn.add_server(three[1].url)
    conn.add_server(three[2].url)
    conn.add_server(three[1].url)
    assert urls(conn.servers) == [server.url for server in three]
    three[0].kill()
    wait_until(lambda: conn.stats.reconnects == 1)
    assert current(conn) == three[1].url
    conn.close()


def test_bad_servers_change_nothing(three: list[NatsServer]) -> None:
    conn = gnats.connect(three[0].url)
    for bad in ("", "http://x", "nats://:0", "nats://host:99999", "nats://u ser@h ost"):
        with pytest.raises(gnats.errors.BadURLError):
            conn.add_server(bad)
        with pytest.raises(gnats.errors.BadURLError):
            conn.set_servers([three[1].url, bad])
    with pytest.raises(gnats.errors.BadURLError):
        conn.set_servers([])
    assert urls(conn.servers) == [three[0].url]
    conn.close()


# -- discovery -------------------------------------------------------------------------------


def test_a_cluster_is_discovered_and_followed(nats_cluster: NatsCluster) -> None:
    told: list[int] = []
    conn = gnats.connect(
        nats_cluster[0].url,
        discovered_servers_cb=lambda c: told.append(len(c.discovered_servers)),
        **FAST,
    )
    wait_until(lambda: len(conn.servers) == 3)
    assert urls(conn.servers)[0] == nats_cluster[0].url
    assert set(urls(conn.servers)) == set(nats_cluster.urls)
    assert set(urls(conn.discovered_servers)) == set(nats_cluster.urls[1:])

    added = nats_cluster.add()
    wait_until(lambda: added.url in urls(conn.discovered_servers))
    wait_until(lambda: told[-1:] == [3])
    gone = nats_cluster[1].url
    nats_cluster.remove(1)
    wait_until(lambda: gone not in urls(conn.servers), 15)
    assert set(urls(conn.servers)) == set(nats_cluster.urls)

    # Lose the only configured server: a discovered one takes us, and it is not forgotten.
    sub = conn.subscribe("x")
    conn.flush()
    nats_cluster[0].kill()
    wait_until(lambda: conn.stats.reconnects == 1)
    assert current(conn) in nats_cluster.urls[1:]
    conn.publish("x", b"1")
    assert sub.next_msg(5).data == b"1"
    wait_until(lambda: nats_cluster[0].url in urls(conn.servers))
    assert nats_cluster[0].url not in urls(conn.discovered_servers)
    conn.close()


def test_discovered_servers_are_ignored_when_asked_to(nats_cluster: NatsCluster) -> None:
    told: list[Any] = []
    conn = gnats.connect(
        nats_cluster[0].url, ignore_discovered_servers=True, discovered_servers_cb=told.append
    )
    conn.flush()
    nats_cluster.add()
    conn.flush()
    gevent.sleep(0.1)
    conn.flush()
    assert urls(conn.servers) == [nats_cluster[0].url]
    assert told == []
    conn.close()


def test_a_discovered_server_inherits_the_credentials() -> None:
    with NatsCluster(2, user="u", password="p@ss:/word") as cluster:
        for how in ("url", "options"):
            if how == "url":
                conn = gnats.connect(cluster[0].auth_url, **FAST)
            else:
                conn = gnats.connect(cluster[0].url, user="u", password="p@ss:/word", **FAST)
            wait_until(lambda conn=conn: len(conn.servers) == 2)
            conn.force_reconnect()
            wait_until(lambda conn=conn: conn.stats.reconnects == 1)
            assert current(conn) == cluster[1].url
            conn.flush()
            conn.close()


def test_only_the_fake_says_odd_things_of_its_neighbours(fake_server: Any) -> None:
    """Unreadable addresses are passed over; duplicates, and our own, are no news."""

    def gossip(client: FakeClient) -> None:
        client.handshake(
            connect_urls=[
                "10.0.0.1:4222",
                "10.0.0.1:4222",
                "[::1]:4222",
                f"127.0.0.1:{server.port}",
                "no port:x",
                "",
                "host:99999",
            ]
        )
        client.serve()

    server: FakeServer = fake_server(gossip)
    conn = gnats.connect(server.url)
    assert set(urls(conn.servers)) == {server.url, "nats://10.0.0.1:4222", "nats://[::1]:4222"}
    assert urls(conn.servers)[0] == server.url
    # One that vanishes from the next INFO is forgotten; the configured one is not.
    server.clients[0].send_info(connect_urls=["[::1]:4222"])
    wait_until(lambda: len(conn.servers) == 2)
    assert urls(conn.servers) == [server.url, "nats://[::1]:4222"]
    conn.close()


def test_an_info_that_names_no_neighbours_says_nothing_of_them(fake_server: Any) -> None:
    """Without connect_urls (no cluster, or not advertised) the pool stays as it is; as nats.go."""

    def gossip(client: FakeClient) -> None:
        client.handshake(connect_urls=["10.0.0.1:4222"])
        client.serve()

    server = fake_server(gossip)
    conn = gnats.connect(server.url)
    client = server.wait_for_client()
    client.send_info(max_payload=4242)
    wait_until(lambda: conn.max_payload == 4242)
    assert len(conn.servers) == 2
    conn.close()


def test_the_current_server_is_kept_though_nobody_names_it(fake_server: Any) -> None:
    """A discovered server that we are connected to stays, whatever INFO says."""
    other = fake_server()

    def gossip(client: FakeClient) -> None:
        client.handshake(connect_urls=[f"127.0.0.1:{other.port}"])
        client.serve()

    server = fake_server(gossip)
    conn = gnats.connect(server.url, **FAST)
    conn.force_reconnect()
    wait_until(lambda: current(conn) == other.url)
    other.wait_for_client().send_info(connect_urls=["10.0.0.9:4222"])
    wait_until(lambda: "nats://10.0.0.9:4222" in urls(conn.servers))
    assert set(urls(conn.servers)) == {other.url, server.url, "nats://10.0.0.9:4222"}
    conn.close()


# -- lame duck ----------------------------------------------------------------------------------


def test_lame_duck_is_told_and_left() -> None:
    events: list[str] = []
    with NatsServer(lame_duck_grace_period=0.3) as duck, NatsServer() as other:
        conn = gnats.connect(
            [duck.url, other.url],
            lame_duck_cb=lambda c: events.append("lame_duck"),
            disconnected_cb=lambda c: events.append("disconnected"),
            reconnected_cb=lambda c: events.append("reconnected"),
            lame_duck_move=False,  # tests/test_move.py has the other way
            **FAST,
        )
        sub = conn.subscribe("x")
        conn.flush()
        duck.lame_duck()
        wait_until(lambda: events == ["lame_duck"])
        assert conn.is_connected
        conn.publish("x", b"still")  # the grace period is for finishing work
        assert sub.next_msg(5).data == b"still"
        wait_until(lambda: events == ["lame_duck", "disconnected", "reconnected"], 10)
        assert current(conn) == other.url
        conn.publish("x", b"again")
        assert sub.next_msg(5).data == b"again"
        conn.close()


def test_a_cluster_node_that_goes_lame_is_replaced_by_its_neighbour() -> None:
    with NatsCluster(2, lame_duck_grace_period=0.2) as cluster:
        ducks: list[str] = []
        conn = gnats.connect(
            cluster[0].url, lame_duck_cb=lambda c: ducks.append(current(c)), **FAST
        )
        wait_until(lambda: len(conn.servers) == 2)
        cluster[0].lame_duck()
        wait_until(lambda: conn.stats.reconnects == 1, 15)
        assert current(conn) == cluster[1].url
        assert ducks == [cluster[0].url]
        conn.flush()
        conn.close()


# -- again and again --------------------------------------------------------------------------


def kill_rounds(three: list[NatsServer], rounds: int) -> None:
    """Kill the current server, publish meanwhile, restart it: see that nothing is lost."""
    got: list[bytes] = []
    lost_by: list[Exception] = []
    visited: list[str] = []
    conn = gnats.connect(
        [server.url for server in three],
        error_cb=lambda _, exc: lost_by.append(exc),
        **FAST,
    )
    by_url = {server.url: server for server in three}
    conn.subscribe("main.>", cb=lambda msg: got.append(msg.data))
    probes = [conn.subscribe(f"probe.{number}") for number in range(20)]
    queued = conn.subscribe("queued", queue="q")
    counted = conn.subscribe("counted", max_msgs=rounds)
    published: list[bytes] = []

    def publish(count: int) -> None:
        for _ in range(count):
            published.append(b"%d" % len(published))
            conn.publish("main.x", published[-1])

    slowest = 0.0
    for turn in range(1, rounds + 1):
        server = by_url[current(conn)]
        visited.append(server.url)
        publish(5)
        conn.flush()
        wait_until(lambda: len(got) == len(published))  # delivered, before it dies
        server.kill()
        wait_until(lambda turn=turn: conn.stats.disconnects == turn)
        began = monotonic()
        publish(7)  # in the outage, or right behind it
        wait_until(lambda turn=turn: conn.stats.reconnects == turn)
        slowest = max(slowest, monotonic() - began)
        publish(3)
        conn.flush()
        wait_until(lambda: len(got) >= len(published))
        assert got == published  # once each, in publish order
        here = by_url[current(conn)]
        (client,) = here.connz(subs=True)["connections"]
        wanted = ["main.>", *(probe.subject for probe in probes), "queued"]
        if not counted.is_closed:
            wanted.append("counted")
        assert sorted(client["subscriptions_list"]) == sorted(wanted)
        for probe in (*probes, queued, counted):
            conn.publish(probe.subject, b"%d" % turn)
        for probe in (*probes, queued, counted):
            assert probe.next_msg(5).data == b"%d" % turn
        conn.flush()
        assert [probe.pending_msgs for probe in (*probes, queued, counted)] == [0] * 22
        server.start()
    # All of them, in order.
    order = [server.url for server in three]
    assert visited == [order[turn % 3] for turn in range(rounds)]
    assert counted.is_closed
    stats = conn.stats
    assert stats.uncertain == stats.dropped == 0
    assert stats.accepted == stats.sent + stats.buffered
    assert stats.errors_received == 0
    assert all(isinstance(exc, TransportError) for exc in lost_by)
    assert len(lost_by) == rounds  # no attempt failed: the next in order was alive
    conn.close()
    print(f"{rounds} rounds, slowest return {slowest * 1000:.0f} ms")  # noqa: T201


def test_the_current_server_killed_fifty_times(three: list[NatsServer]) -> None:
    kill_rounds(three, 50)


def test_one_server_killed_and_restarted_again_and_again(nats_server: NatsServer) -> None:
    """Nobody else to go to: each outage lasts as long as the server is away, and no longer."""
    conn = gnats.connect(nats_server.url, **FAST)
    sub = conn.subscribe("x")
    for turn in range(1, 9):
        nats_server.kill()
        wait_until(lambda turn=turn: conn.stats.disconnects == turn)
        for number in range(20):
            conn.publish("x", b"%d" % number)
        nats_server.start()
        wait_until(lambda turn=turn: conn.stats.reconnects == turn, 3)
        assert [sub.next_msg(5).data for _ in range(20)] == [b"%d" % n for n in range(20)]
    conn.flush()
    assert sub.pending_msgs == 0
    conn.close()
