"""Several servers and a delay of your own. Run it:
python examples/multi_server.py [url,url,...]

Stop the server that it is connected to, and see it go on with the next one. Ctrl-C ends it.
"""

import sys

import gevent

import gnats

urls = sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222,nats://127.0.0.1:4223"


def delay(cycles):
    """Seconds to wait when every server has failed *cycles* times: 0.2, 0.4, 0.8 ... 5."""
    seconds = min(0.1 * 2 ** min(cycles, 6), 5.0)
    print(f"no server answers, next try in {seconds:.1f} s")
    return seconds


conn = gnats.connect(
    urls,
    max_reconnect=-1,  # never give up
    drain_timeout=3.0,  # at the end, wait at most so long for what is not sent yet
    custom_reconnect_delay_cb=delay,
    disconnected_cb=lambda conn: print(f"disconnected: {conn.last_error}"),
    reconnected_cb=lambda conn: print(f"reconnected to {conn.connected_url}"),
)
with conn:
    print(f"connected to {conn.connected_url}, end with Ctrl-C")
    conn.subscribe("demo.ticks", cb=lambda msg: print(f"received {msg.data.decode()}"))
    try:
        for number in range(1, 1_000_000):
            conn.publish("demo.ticks", f"tick {number}")  # kept while there is no server
            gevent.sleep(0.5)
    except KeyboardInterrupt:
        print("bye")
