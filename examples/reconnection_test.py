"""An application keeps publishing while its server dies and comes back. Nothing may be lost.

Run it: python examples/reconnection_test.py          (needs: pip install 'gnats[server]')

It starts real nats-servers of its own, on free ports, and goes through four phases:

    before   messages to a callback, a queue group, a next_msg() loop; requests to a service
    during   the server is killed (SIGKILL); the application publishes on, gnats keeps it all
    after    the server is back: what was kept comes first, in order, and life goes on
    moved    a second server joins the cluster, the first one leaves in good order; the connection
             moves over, which is no loss

It ends in a summary, and exits with 1 if a message was lost, doubled or out of order, if a
callback is missing, or if the books do not close.

Publisher and readers share one connection: its subscriptions are back before the first kept
message is sent. A reader in another process may come back later than the publisher, and core
NATS delivers to those who are there.
"""

import logging
import sys
import textwrap
from time import monotonic

import gevent

import gnats
from gnats.testing import NatsCluster, wait_until

MESSAGES = {"before": 200, "during": 500, "after": 200, "moved": 100}
PAUSE = 0.002  # seconds between two messages
WAIT = 0.25  # seconds between two rounds of attempts
PATIENCE = 10.0  # seconds for anything that should take less than one
DELIVERY = 2.0  # seconds for readers to read what the connection has received already

EXPECTED_CALLBACKS = [
    "connected_cb",
    "disconnected_cb",  # killed
    "reconnected_cb",
    "discovered_servers_cb",  # a second server joined
    "lame_duck_cb",  # the first one announces that it leaves, and is left without a gap
    "closed_cb",
]
EXPECTED_MOVES = [
    "connecting",
    "connected",
    "reconnecting",
    "connected",
    "draining_subs",
    "draining_pubs",
    "closed",
]

BEGAN = monotonic()


class Record:
    """What happened, as the application saw it."""

    def __init__(self):
        self.published = {phase: [] for phase in MESSAGES}
        # Each kind of reader has members; each member has the numbers it got, in its order.
        self.readers = {"callback": [[]], "queue group": [[], []], "next_msg": [[]]}
        self.answered = []  # the phases in which a request was answered
        self.callbacks = []
        self.moves = []  # of the status
        self.errors = []  # what error_cb was told
        self.delays = 0  # how often custom_reconnect_delay_cb was asked
        self.buffered = 0  # messages kept when the outage was at its end
        self.times = {}  # what -> when
        self.stats = None

    def all_published(self):
        return [number for numbers in self.published.values() for number in numbers]

    def note_time(self, what):
        self.times.setdefault(what, monotonic())


def say(text):
    print(f"[{monotonic() - BEGAN:6.2f} s] {text}", flush=True)


# -- the application ---------------------------------------------------------------------


def connect(url, record):
    def lifecycle(name, and_say=lambda _conn: ""):
        def callback(conn):
            record.callbacks.append(name)
            record.note_time(f"{name} {record.callbacks.count(name)}")
            say(f"    {name}{and_say(conn)}")

        return callback

    def error_cb(_conn, error):
        record.errors.append(error)
        say(f"    error_cb: {error}")

    def status_cb(_conn, old, new):
        record.moves.append(str(new))
        say(f"    status_cb: {old} -> {new}")

    def delay_cb(cycles):
        record.delays += 1
        say(f"    custom_reconnect_delay_cb({cycles}): every server failed, wait {WAIT} s")
        return WAIT

    return gnats.connect(
        url,
        name="reconnection_test",
        max_reconnect=-1,  # never give up
        reconnect_wait=WAIT,
        custom_reconnect_delay_cb=delay_cb,
        connected_cb=lifecycle("connected_cb", lambda conn: f": {conn.connected_url}"),
        disconnected_cb=lifecycle("disconnected_cb", lambda conn: f": {conn.last_error}"),
        reconnected_cb=lifecycle("reconnected_cb", lambda conn: f": {conn.connected_url}"),
        discovered_servers_cb=lifecycle(
            "discovered_servers_cb", lambda conn: f": {conn.discovered_servers[0]}"
        ),
        lame_duck_cb=lifecycle("lame_duck_cb"),
        closed_cb=lifecycle("closed_cb"),
        error_cb=error_cb,
        status_cb=status_cb,
    )


def subscribe(conn, record):
    """A reader of each kind, and a service that answers requests."""
    numbers = record.readers["callback"][0]

    def on_number(msg):
        numbers.append(int(msg.data))
        if numbers[-1] in record.published["during"]:
            record.note_time("first kept message")

    conn.subscribe("demo.numbers", cb=on_number)
    for member in record.readers["queue group"]:
        conn.subscribe("demo.numbers", queue="workers", cb=make_worker(member))
    loop = conn.subscribe("demo.numbers")
    gevent.spawn(read_in_a_loop, loop, record.readers["next_msg"][0])
    conn.subscribe("demo.ask", cb=lambda msg: msg.respond(b"answer: " + msg.data))


def make_worker(numbers):
    return lambda msg: numbers.append(int(msg.data))


def read_in_a_loop(sub, numbers):
    while not sub.is_closed:
        try:
            numbers.append(int(sub.next_msg(timeout=1.0).data))
        except gnats.errors.TimeoutError:
            pass  # nothing for a second: ask again
        except (gnats.errors.BadSubscriptionError, gnats.errors.ConnectionClosedError):
            return


def publish(conn, record, phase):
    first = len(record.all_published()) + 1
    last = first + MESSAGES[phase] - 1
    say(f"publish {first} to {last} ({conn.status})")
    for number in range(first, last + 1):
        conn.publish("demo.numbers", str(number))
        record.published[phase].append(number)
        gevent.sleep(PAUSE)


def ask(conn, record, phase):
    """A request. It keeps its own deadline, even across an outage."""
    answer = conn.request("demo.ask", phase, timeout=PATIENCE)
    if answer.data == b"answer: " + phase.encode():
        record.answered.append(phase)
        say(f"    the request made {phase} the outage is answered")


def await_delivery(conn, record):
    """All that was published is processed and read; what is missing then is lost."""
    conn.flush(timeout=PATIENCE)
    with gevent.Timeout(DELIVERY, False):
        while any(lost(record.all_published(), members) for members in record.readers.values()):
            gevent.sleep(0.01)


# -- the four phases ---------------------------------------------------------------------


def before(conn, record):
    publish(conn, record, "before")
    ask(conn, record, "before")


def during(conn, record, server):
    # What is under way in the instant of a SIGKILL may or may not have arrived; by default
    # gnats does not send it again and counts it as `uncertain`. await_delivery() flushes: now
    # the server has processed everything, and we may demand that not one message is lost.
    await_delivery(conn, record)
    say("kill the server (SIGKILL)")
    server.kill()
    conn.wait_for_status("reconnecting", timeout=PATIENCE)
    asking = gevent.spawn(ask, conn, record, "during")
    publish(conn, record, "during")
    record.buffered = conn.stats.buffered
    say(f"{record.buffered} messages ({conn.stats.buffered_bytes} bytes) are kept")
    return asking


def after(conn, record, server, asking):
    say("start the server again, on the same port")
    server.start()
    record.note_time("server accepts again")
    say("the server accepts again")
    wait_until(lambda: "reconnected_cb" in record.callbacks, PATIENCE, "reconnected_cb")
    asking.get(timeout=PATIENCE)
    publish(conn, record, "after")
    ask(conn, record, "after")
    await_delivery(conn, record)


def moved(conn, record, cluster):
    say("a second server joins the cluster")
    second = cluster.add()
    wait_until(lambda: "discovered_servers_cb" in record.callbacks, PATIENCE, "the second server")
    say("the first server leaves in good order (lame duck mode)")
    cluster[0].lame_duck()
    wait_until(lambda: str(conn.connected_url) == second.url, PATIENCE, "the move")
    say("now on the second server")
    publish(conn, record, "moved")
    await_delivery(conn, record)


def run(record):
    # As by default, a server in lame duck mode waits ten seconds before it puts a client out.
    with NatsCluster(1, lame_duck_grace_period=10) as cluster:
        server = cluster[0]
        say(f"a nats-server runs at {server.url}")
        with connect(server.url, record) as conn:
            info = conn.server_info
            say(f"gnats {gnats.__version__}, gevent {gevent.__version__}, server {info.version}")
            subscribe(conn, record)
            before(conn, record)
            asking = during(conn, record, server)
            after(conn, record, server, asking)
            moved(conn, record, cluster)
            say("leave: drain and close")
        record.stats = conn.stats


# -- the verdict -------------------------------------------------------------------------


def lost(published, members):
    """The numbers that no member got."""
    return sorted(set(published).difference(*members))


def doubled(members):
    """How many numbers came more than once, over all members."""
    return sum(map(len, members)) - len(set().union(*members))


def in_order(members):
    return all(numbers == sorted(numbers) for numbers in members)


def books_close(stats):
    return stats.accepted == stats.sent + stats.uncertain + stats.dropped + stats.buffered


def faults(record):
    """Everything that is not as promised, in words. Empty: the promise is kept."""
    found = []
    for phase, count in MESSAGES.items():
        if len(record.published[phase]) != count:
            found.append(f"published {phase}: not {count} messages")
        if phase != "moved" and phase not in record.answered:
            found.append(f"the request made {phase} the outage was not answered")
    for name, members in record.readers.items():
        missing = lost(record.all_published(), members)
        if missing:
            found.append(f"{name}: {len(missing)} messages lost, the first is {missing[0]}")
        if doubled(members):
            found.append(f"{name}: {doubled(members)} messages doubled")
        if not in_order(members):
            found.append(f"{name}: the order was not kept")
    return found + faults_of_callbacks(record) + faults_of_books(record)


def faults_of_callbacks(record):
    found = []
    if record.callbacks != EXPECTED_CALLBACKS:
        found.append(f"callbacks: {record.callbacks}, expected: {EXPECTED_CALLBACKS}")
    if record.moves != EXPECTED_MOVES:
        found.append(f"status: {record.moves}, expected: {EXPECTED_MOVES}")
    if not record.errors:
        found.append("error_cb was never called")
    if not record.delays:
        found.append("custom_reconnect_delay_cb was never called")
    return found


def faults_of_books(record):
    stats = record.stats
    if stats is None:
        return ["there are no books"]
    found = []
    if not books_close(stats):
        found.append(f"the books do not close: {stats}")
    if stats.uncertain or stats.dropped or stats.buffered:
        found.append("something was left uncertain, dropped or buffered")
    if record.buffered < MESSAGES["during"]:
        found.append(f"only {record.buffered} messages were kept during the outage")
    return found


# -- the summary -------------------------------------------------------------------------


def summarize(record):
    print("\nSummary\n-------")
    counts = ", ".join(f"{len(numbers)} {phase}" for phase, numbers in record.published.items())
    line("published", f"{counts}: {len(record.all_published())}")
    for name, members in record.readers.items():
        line(name, describe_reader(record.all_published(), members))
    line("requests", f"answered: {', '.join(record.answered)} the outage")
    line("kept", f"{record.buffered} messages at the end of the outage")
    summarize_recovery(record)
    line("callbacks", ", ".join(record.callbacks))
    line("also", f"error_cb {len(record.errors)} x, custom_reconnect_delay_cb {record.delays} x")
    line("status", " -> ".join(record.moves))
    summarize_books(record.stats)


def summarize_recovery(record):
    stats = record.stats
    if stats is not None:
        failed = stats.attempts - stats.connects
        line("attempts", f"{stats.attempts}: {stats.connects} came up, {failed} failed")
    line("recovered", f"first kept message {since_accept(record, 'first kept message')}")
    line("", f"reconnected_cb {since_accept(record, 'reconnected_cb 1')}")
    line("", f"(the wait between two attempts is {WAIT * 1000:.0f} ms)")


def summarize_books(stats):
    if stats is None:
        return
    parts = ("sent", "uncertain", "dropped", "buffered")
    sums = " + ".join(f"{name} {getattr(stats, name)}" for name in parts)
    line("books", f"accepted {stats.accepted} = {sums}")
    line("", "(the numbers, 3 requests and 3 answers; all on one connection)")
    line("", f"written late or again: {stats.replayed}; links lost: {stats.disconnects}")


def line(name, text):
    for index, part in enumerate(textwrap.wrap(text, width=80)):
        print(f"{name if index == 0 else '':<12} {part}")


def describe_reader(published, members):
    shares = " + ".join(str(len(numbers)) for numbers in members)
    order = "kept" if in_order(members) else "BROKEN"
    missing = len(lost(published, members))
    return f"delivered {shares}, lost {missing}, doubled {doubled(members)}, order {order}"


def since_accept(record, what):
    if what not in record.times or "server accepts again" not in record.times:
        return "never"
    # We look every few milliseconds whether the server accepts; gnats may be there before us.
    late = max(0.0, record.times[what] - record.times["server accepts again"])
    return f"{late * 1000:.0f} ms after the server accepted again"


def main():
    # gnats logs each loss as well; here the callbacks say it all.
    logging.getLogger("gnats").addHandler(logging.NullHandler())
    record = Record()
    try:
        run(record)
    except (
        Exception,
        gevent.Timeout,
    ) as error:  # whatever stopped it, show how far it came, and fail
        summarize(record)
        print(f"\nFAILED: {type(error).__name__}: {error}")
        return 1
    summarize(record)
    found = faults(record)
    for fault in found:
        print(f"\nFAILED: {fault}")
    if not found:
        print("\nPASSED: nothing lost, nothing doubled, order kept, every callback came")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
