"""Share jobs among workers: each job goes to one of them. Run it:
python examples/queue_workers.py [url]

Start it in several terminals at once: the workers of all of them share the jobs.
"""

import sys

import gevent

import gnats

url = sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"

done = []


def make_worker(name):
    def work(msg):
        gevent.sleep(0.02)  # the job
        done.append(msg.data)
        print(f"{name} did {msg.data.decode()}")

    return work


with gnats.connect(url, name="queue_workers.py") as conn:
    # The same queue name makes a group. A worker handles its jobs one after the other;
    # subscribe(..., concurrency=10) lets it handle ten at a time.
    for name in ("worker A", "worker B", "worker C"):
        conn.subscribe("demo.jobs", queue="workers", cb=make_worker(name))

    for number in range(1, 13):
        conn.publish("demo.jobs", f"job {number}")

# Leaving the block drains: jobs that have arrived are finished before the connection closes.
print(f"done here: {len(done)} jobs")
