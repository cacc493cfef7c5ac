"""How gunicorn runs the examples beside it. A worker connects when it starts; when it ends it
finishes the requests and messages that it has, sends what is buffered, and closes.
"""

from gnats.contrib.gunicorn import post_worker_init, worker_exit  # noqa: F401

bind = "127.0.0.1:8000"
worker_class = "gevent"
workers = 2
max_requests = 10_000  # then a worker is replaced, and nothing is lost
graceful_timeout = 30  # seconds; a third of it may be used to say goodbye to the server
