"""Celery's gevent pool: tasks publish results, handlers answer requests. Run it, in this folder:
celery -A celery_app worker -P gevent      (needs: pip install 'gnats[celery]')
Then: python celery_app.py      (sends tasks, gets their results, asks how many there were)
"""

import os

from celery import Celery

import gnats.wsgi
from gnats.contrib.celery import connect_signals

connect_signals()  # a worker connects when it starts; when it ends it sends what is buffered
URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
nats = gnats.wsgi.Nats(URL)
folder = os.environ.get("QUEUE_FOLDER", "queue")  # a broker that needs no server
os.makedirs(folder, exist_ok=True)
app = Celery("celery_app", broker="filesystem://")
app.conf.broker_transport_options = {f"data_folder_{way}": folder for way in ("in", "out")}
done = []


@app.task
def square(number):
    done.append(number)
    nats.publish("demo.squares", f"{number} * {number} = {number * number}")


@nats.subscription("demo.count", queue="squares")
def count(msg):
    msg.respond(str(len(done)))


if __name__ == "__main__":
    with gnats.connect(URL) as conn, conn.subscribe("demo.squares") as results:
        for number in (1, 2, 3):
            square.delay(number)
            print(results.next_msg(timeout=10).data.decode())
        print(f"tasks done: {conn.request('demo.count').data.decode()}")
