"""A Flask app with a background consumer and a health page. Run it, in this folder:
gunicorn -c gunicorn.conf.py flask_app:app      (needs: pip install 'gnats[flask,gunicorn]')

Then: curl -d pears localhost:8000/orders; curl localhost:8000/orders; curl localhost:8000/health
"""

import os

from flask import Flask, current_app, request

from gnats.contrib.flask import Nats

nats = Nats()  # one connection for each worker process
done = []


# In the background: each order goes to one worker of all, with an app context around it.
@nats.subscription("demo.orders", queue="kitchen")
def cook(msg):
    current_app.logger.warning("cooked %s", msg.data.decode())
    done.append(msg.data.decode())


app = Flask(__name__)
app.config["NATS_SERVERS"] = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
nats.init_app(app)
app.add_url_rule("/health", "health", lambda: nats.health_app)


@app.post("/orders")
def order():
    nats.publish("demo.orders", request.get_data())  # while the server is away, too
    return "accepted\n", 202


@app.get("/orders")
def orders():
    return {"worker": os.getpid(), "done": done}
