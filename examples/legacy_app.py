"""A legacy app: plain WSGI and blocking calls, which gevent patches. Run it, in this folder:
gunicorn -c gunicorn.conf.py legacy_app:app      (needs: pip install 'gnats[gunicorn]')

Then: curl -d pears localhost:8000/upper; curl localhost:8000/health
"""

from gevent import monkey

monkey.patch_all()  # before anything else is imported

import os
import time

import gnats.wsgi

nats = gnats.wsgi.Nats(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))


# Ten at once in each worker process; each request is answered by one of all workers.
@nats.subscription("demo.upper", queue="upper", concurrency=10)
def upper(msg):
    time.sleep(0.01)  # blocks this greenlet only
    msg.respond(msg.data.upper())


def app(environ, start_response):
    if environ["PATH_INFO"] == "/health":
        return nats.health_app(environ, start_response)
    try:
        answer = nats.request("demo.upper", environ["wsgi.input"].read(), timeout=2.0)
    except (gnats.errors.TimeoutError, gnats.errors.NoRespondersError):
        start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"try again\n"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer.data]
