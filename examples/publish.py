"""Publish a few messages. Run it: python examples/publish.py [url]

Start examples/subscribe.py first, in another terminal, to see them arrive.
"""

import sys

import gnats

url = sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"

with gnats.connect(url, name="publish.py") as conn:
    for number in range(1, 6):
        conn.publish("demo.greetings", f"hello number {number}")

    conn.publish("demo.greetings", b"bytes are fine too", headers={"Language": "en"})

    # publish() returns as soon as the message is accepted; flush() returns once the server has
    # processed everything that was published before.
    conn.flush(timeout=5)
    print(f"published 6 messages to demo.greetings, through {conn.connected_url}")
