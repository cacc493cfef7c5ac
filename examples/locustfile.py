"""A load test of requests and publishes, in locust's own statistics. Run it, in this folder:
locust -f locustfile.py --headless -u 50 -r 50 -t 10s      (needs: pip install gnats locust)
Without --headless it is steered from a web page.
"""

import os
import time

from locust import User, between, events, task

import gnats.wsgi

# All users of a process share one connection.
nats = gnats.wsgi.Nats(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
nats.subscription("demo.echo")(lambda msg: msg.respond(msg.data))  # what is tested: put yours here
events.quitting.add_listener(lambda **_: nats.stop())


class Client(User):
    wait_time = between(0.01, 0.05)  # seconds

    def measure(self, name, call, *arguments):
        began, error = time.perf_counter(), None
        try:
            call(*arguments)
        except gnats.errors.Error as exc:
            error = exc
        took = (time.perf_counter() - began) * 1000
        self.environment.events.request.fire(
            request_type="NATS", name=name, response_time=took, response_length=0, exception=error
        )

    @task
    def ask(self):
        self.measure("request", nats.request, "demo.echo", b"hello")

    @task
    def tell(self):
        self.measure("publish", nats.publish, "demo.greetings", b"hello")
