"""Receive messages in a callback and in a loop. Run it: python examples/subscribe.py [url]

Then run examples/publish.py in another terminal. Ctrl-C ends it.
"""

import sys

import gnats

url = sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"


def on_greeting(msg):
    language = msg.headers["Language"] if msg.headers else "none given"
    print(f"callback: {msg.data.decode()!r} (language: {language})")


with gnats.connect(url, name="subscribe.py") as conn:
    # Each message is handed to the callback, in order, in a greenlet of the subscription.
    conn.subscribe("demo.greetings", cb=on_greeting)

    # Without a callback, loop over the subscription, or call sub.next_msg(timeout=1.0).
    everything = conn.subscribe("demo.>")

    conn.flush(timeout=5)  # now the server knows of both
    print("waiting for messages on demo.>, end with Ctrl-C")
    try:
        for msg in everything:
            print(f"loop: {len(msg.data)} bytes on {msg.subject}")
    except KeyboardInterrupt:
        print("bye")
