"""When messages come faster than they go. Run it: python examples/backpressure.py [url]"""

import sys

import gevent

import gnats

url = sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"

conn = gnats.connect(
    "nats://127.0.0.1:1",  # nobody listens there, so that this example starts with an outage
    retry_on_failed_connect=True,  # return at once, go on trying in the background
    reconnect_buf_size=10_000,  # bytes kept while there is no server
    publish_timeout=2.0,  # connected, but the server is slow: wait for room at most so long
    error_cb=lambda _conn, error: print(f"error_cb: {error}"),
)
with conn:
    # 1. No server: messages are kept, up to reconnect_buf_size; then publish() says so.
    accepted = 0
    try:
        while True:
            conn.publish("demo.flood", b"x" * 100)
            accepted += 1
    except gnats.errors.OutboundBufferLimitError as error:
        print(f"accepted {accepted}, then: {error}")  # of the refused message nothing is kept

    # 2. A slow consumer: it has room for 10 messages; further ones are dropped and counted.
    slow = conn.subscribe("demo.flood", cb=lambda _msg: gevent.sleep(0.02), pending_msgs_limit=10)

    conn.add_server(url)
    conn.wait_for_status("connected", timeout=10)
    conn.flush(timeout=10)  # what was accepted has reached the server
    print(f"sent {conn.stats.sent}, still buffered {conn.stats.buffered}")

print(f"the slow consumer handled {slow.delivered} and dropped {slow.dropped}")
