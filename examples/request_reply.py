"""Ask a question, get an answer. Run it: python examples/request_reply.py [url]"""

import sys

import gevent

import gnats

url = sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"


def add(msg):
    numbers = msg.data.decode().split()
    msg.respond(str(sum(map(int, numbers))))


def think_long(msg):
    gevent.sleep(1)
    msg.respond("42")


with gnats.connect(url, name="request_reply.py") as conn:
    # The service. It usually lives in another process; here it shares our connection.
    conn.subscribe("demo.add", cb=add)
    conn.subscribe("demo.think", cb=think_long)

    answer = conn.request("demo.add", "1 2 3", timeout=2)
    print(f"1 + 2 + 3 = {answer.data.decode()}")

    try:
        conn.request("demo.think", timeout=0.2)
    except gnats.errors.TimeoutError as error:
        print(f"too slow: {error}")

    try:
        conn.request("demo.nobody", timeout=2)
    except gnats.errors.NoRespondersError as error:
        print(f"no service: {error}")
