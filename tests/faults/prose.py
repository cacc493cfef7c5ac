"""What docs/faults.md says in words. Figures come in from ``page``."""

from __future__ import annotations

OPENING = """# Faults

What was done to connections of gnats, at which moments, what was expected of it, and what it did.
The program that does it writes this page:

```sh
tox run -e faults
python -m tests.faults --only blackhole-up --moment restore
python -m tests.faults --natspy --write docs/faults.md
```

The first runs the whole table as tests, the second some cells, in a clone with its test
requirements installed; the third writes this page.

{faults} faults, {moments} moments, {modes} modes: {cells} cells, of which **{met} are met**.
{messages:,} numbered messages were published; the books were checked {audits:,} times, at random
moments and in every callback. Seed `{seed}`, and it was run with
{versions}.
"""

PROMISES = """## What is expected of every cell

The expectations are data, in [tests/faults/table.py](../tests/faults/table.py), stated before the
run that this page shows. A cell that does not meet them fails its test. On the way there a few
had to be corrected: the first runs showed that they asked for what no client of core NATS can do,
as a strict order of messages that a dead link delivers after all.

- **It comes back by itself**: within 5 seconds of the cure a message that is published then gets
  through, and the application receives again. Where the way is free at once, the time counts
  from the fault. (Or it ends as the fault's row says: closed, with the reason.)
- **By default, at most once**: no message is doubled. Each one that is missing is among those that
  `stats.uncertain` counts: messages are settled in the order of their publishing, so the counts
  at each loss say which ones they are. The order is kept, but for the uncertain: what a dead link
  still held, in the network or in the server, may arrive after all, behind newer messages.
- **At least once**, with `replay_unconfirmed=True`: no message is lost, none is uncertain, and the
  first arrivals come in order. Some come twice.
- **Nothing is dropped**, except by `close()` while nobody takes it; `stats.dropped` counts it.
- **What is received** comes once and in order. What is sent to an application while it is away is
  lost by NATS itself, and counted apart.
- **The status** moves by `gnats.status.MOVES`; `disconnected_cb` comes once per loss,
  `reconnected_cb` once per return, `closed_cb` once and last.
- **Calls end**: a request, a flush, a drain, a close, each within its own time-out plus 2 seconds
  for a loaded machine. No request gets the answer to another. Where the fault is cured, a drain
  drains.
- **The books close**, `accepted = sent + uncertain + dropped + buffered`, in every callback, at
  random moments, and at the end, when nothing is buffered any more.
- **Nothing is left** behind a close: no greenlet, no descriptor, no connection, session or
  transport in memory.

Exceptions are stated per fault, below. There are two: a server that dies takes with it what it had
confirmed and not yet delivered, and a byte that is changed in a payload or a name is noticed by
nobody.
"""

MATRIX = """## Every cell

✓ and the milliseconds until the first new message got through, in the slower of both modes. ✓
alone: it was on its way out, or had to close. ✗: not met, see [below](#cells-that-are-not-met).
–: makes no sense, see [the end](#how-it-is-done).

The moments, from left to right: the fault is there before the first connect; the first handshake
hangs at a *stage* (accepted, half of INFO, before CONNECT arrives, before PONG arrives) when the
fault strikes; the link is *idle*; a flood is *publish*ed; publishers *press*, and wait for room;
a flood is *receive*d; subscriptions come and go; *request*s, and *flush*es, are in flight;
`drain()` or `close()` is under way, or is called while the link is *away*; 2,000 subscriptions and
400 messages are being *restore*d, and a number of bytes, by chance, has passed; and *again*, in the
handshake of the next link after a reset.
"""

TABLE = """## Fault by fault

Over all moments. *Lost* is what never arrived: by default *of* so many that the books call
`uncertain`, at least once of none. *Given up* is what a `close()` could not send before it closed,
in both modes: lost *of* so many that the books call `dropped` (the others arrived, unconfirmed).
*Late* are first arrivals behind newer messages. *Losses* of the link: each had its
`disconnected_cb`, each return its `reconnected_cb`. *Recovery* is the time until the first new
message got through. What a server took with it, and what a changed byte led astray, is
[told apart](#what-the-server-itself-loses).
"""

OF_THE_SERVER = """## What the server itself loses

A PONG says that the server has processed what was before it, not that everybody has received it. A
server that is killed takes with it what it had confirmed and not yet delivered; no client of core
NATS can know of it, or help it. The cure is JetStream, where the server answers for each message
when it is stored. The observer was connected to the server directly; this is what it never got,
although the server had confirmed it:

| fault | confirmed, and never delivered | of |
|---|---|---|
{rows}

One byte changed on the way, which TCP's own checksum does not see: {altered} messages arrived with
another content, {astray} went astray. Everywhere else it struck the protocol; one of both sides
noticed, and the link was made anew. The cure is TLS.

While the application was away, the server threw away {missed:,} of the {sent_to_it:,} messages that
were sent to it: core NATS delivers to those who are there.
"""

COMPARISON = """## Beside nats-py

The same faults in the middle of a publish flood, done to nats-py, in a process of its own, with the
same options: `ping_interval` 0.1 s, 2 PINGs out, `connect_timeout` 0.5 s, `reconnect_time_wait`
0.05 s, 8 MiB pending, attempts without limit. One run each; *no* means not within {patience:.0f} s.
*Lost, untold*: no counter, callback or exception says how many, or which. *Lost, told*: of so many
that `stats.uncertain` counts. How many are lost depends on how many were on their way in that
moment, and on the processes: compare the kinds, not the numbers. gnats was told
`ignore_auth_error_abort=True`; without it, it closes over a repeated refusal, too.
"""

METHOD = """## How it is done

A real nats-server, `gnats.testing.ChaosProxy` between it and the application, and two raw
connections straight to the server that nothing hurts: one observes what the application publishes,
the other sends to it and answers its requests. When a server is started again, the proxy lets the
application in as soon as the observer is back: what is published before would be lost by NATS
itself. The cluster has three servers and no proxy; the observer is at the one that is not hurt.
Expired credentials are spoken by a relay in front of the server, in the server's own words;
`tests/test_ways_in.py` has a JWT that really expires. The options are those named above, so that
a cell takes half a second; with the defaults, a silent server is found out after six minutes, and
a round of attempts waits for two seconds.

Not in the table:

{reasons}
"""
