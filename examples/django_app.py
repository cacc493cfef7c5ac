"""Django in one file, with a background consumer and a health page. Run it, in this folder:
gunicorn -c gunicorn.conf.py django_app:app      (needs: pip install 'gnats[django,gunicorn]')

Then: curl -d pears localhost:8000/orders; curl localhost:8000/orders; curl localhost:8000/health
"""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse
from django.urls import path

from gnats.contrib.django import nats  # one connection for each worker process

NATS = {"SERVERS": os.environ.get("NATS_URL", "nats://127.0.0.1:4222")}
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], NATS=NATS)
done = []


# In the background: each order goes to one worker of all. The ORM may be used here.
@nats.subscription("demo.orders", queue="kitchen")
def cook(msg):
    done.append(msg.data.decode())


def orders(request):
    if request.method == "GET":
        return JsonResponse({"worker": os.getpid(), "done": done})
    nats.publish("demo.orders", request.body)  # while the server is away, too
    return HttpResponse("accepted\n", status=202)


def health(_request):
    return JsonResponse((report := nats.health()).as_dict(), status=200 if report.is_ready else 503)


urlpatterns = [path("orders", orders), path("health", health)]
app = get_wsgi_application()
