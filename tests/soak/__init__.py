"""Hours of trouble in minutes: ``python -m tests.soak``, or ``tox run -e soak -- --minutes 60``.

Publishers of both kinds, readers, requesters and some hundred subscriptions live on a cluster of
three real servers, behind proxies, with a fault every few seconds. In between come quiet points:
everything is healed and at rest, every account is settled, and memory, descriptors and greenlets
are counted. ``field`` is the ground and what happens to it, ``crew`` who lives there, ``ledger``
who got which message, ``meter`` what the process holds, ``course`` how it all goes, ``summary`` how
it is told. Nothing here needs pytest.
"""
