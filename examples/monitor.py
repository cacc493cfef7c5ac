"""Watch the state of a connection. Run it: python examples/monitor.py [url]

Stop the server and start it again meanwhile. Ctrl-C ends it.
"""

import sys

import gevent

import gnats

url = sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"

# Callbacks run in a greenlet of their own, in order. They may block, and call any method.
callbacks = gnats.Callbacks(
    connected_cb=lambda _conn: print("connected_cb: the first link is up"),
    disconnected_cb=lambda conn: print(f"disconnected_cb: {conn.last_error}"),
    reconnected_cb=lambda _conn: print("reconnected_cb: all is restored"),
    closed_cb=lambda _conn: print("closed_cb: it is over"),
    error_cb=lambda _conn, error: print(f"error_cb: {error}"),
    discovered_servers_cb=lambda conn: print(f"discovered: {conn.discovered_servers}"),
    lame_duck_cb=lambda _conn: print("lame_duck_cb: the server is about to leave"),
    status_cb=lambda _conn, old, new: print(f"status_cb: {old} -> {new}"),
)
never_give_up = gnats.ReconnectOptions(max_reconnect=-1, reconnect_wait=1.0)
options = gnats.ConnectionOptions(reconnect=never_give_up, callbacks=callbacks, drain_timeout=3.0)

with gnats.Connection(options).connect(url) as conn:
    try:
        while True:
            rtt = f"{conn.rtt() * 1000:.1f} ms" if conn.is_connected else "no link"
            stats = conn.stats
            print(f"{conn.status}: rtt {rtt}, sent {stats.sent}, buffered {stats.buffered}")
            gevent.sleep(2)
    except KeyboardInterrupt:
        print("bye")
