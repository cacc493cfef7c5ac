"""A run, as a person reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from . import meter
from .course import Course
from .crew import Asker, Crowd, Publisher


def lines(course: Course) -> Iterator[str]:
    """The whole of it; the last line is the verdict."""
    yield ""
    yield "Summary"
    yield "-------"
    yield _row("ran", f"{course.passed / 60:.1f} minutes, {course.quiet_points} quiet points")
    yield _row("faults", f"{course.faults}: {_listed(course.field.counts)}")
    for member in course.crew:
        if isinstance(member, Publisher):
            yield from _publisher(member)
    yield from _others(course)
    yield from _links(course)
    yield from _holdings(course)
    yield ""
    for finding in course.findings:
        yield f"FAILED: {finding}"
    if not course.findings:
        yield "PASSED: the books close, nothing is lost or doubled that must not be, nothing grows"


def _publisher(one: Publisher) -> Iterator[str]:
    stats = one.conn.stats
    kind = "at least once" if one.keep else "at most once"
    yield _row(
        one.name,
        f"{kind}: {one.published} published, lost {one.lost}, late {one.own.late}, doubled "
        f"{one.own.doubled}",
    )
    yield _row(
        "",
        f"books: accepted {stats.accepted} = sent {stats.sent} + uncertain {stats.uncertain} + "
        f"dropped {stats.dropped} + buffered {stats.buffered}; replayed {stats.replayed}",
    )
    yield _row(
        "",
        f"apart, a reader on a link of its own missed of that {one.lost_beside['rough']} when "
        f"servers went, {one.lost_beside['calm']} otherwise; doubled {one.others.doubled}",
    )


def _others(course: Course) -> Iterator[str]:
    for member in course.crew:
        if isinstance(member, Asker):
            yield _row(
                "requests",
                f"{member.answered} answered, of those {member.misled} wrong; {member.unanswered} "
                "not in time",
            )
        if isinstance(member, Crowd):
            yield _row(
                "subscribed",
                f"{member.changes} changes; {member.roll_calls} of {course.quiet_points} roll "
                "calls found all, each once",
            )


def _links(course: Course) -> Iterator[str]:
    stats = [member.conn.stats for member in course.crew]
    longest = max((member.longest_outage for member in course.crew), default=0.0)
    errors: Counter[str] = Counter()
    for member in course.crew:
        errors.update(member.errors)
    yield _row(
        "links",
        f"{sum(one.disconnects for one in stats)} lost, {sum(one.attempts for one in stats)} "
        f"attempts, {longest:.2f} s the longest outage",
    )
    yield _row("error_cb", _listed(errors))


def _holdings(course: Course) -> Iterator[str]:
    for figure, limit in meter.LIMITS.items():
        values = [getattr(one, figure) / limit.divisor for one in course.samples]
        if not values:
            continue
        more = meter.growth(course.samples, figure)
        trend = "too short to tell" if more is None else f"{more / limit.divisor:+.1f}"
        shown = [f"{values[index]:.{limit.digits}f}" for index in (0, len(values) // 2, -1)]
        yield _row(
            figure,
            f"{' -> '.join(shown)} {limit.unit}; second half {trend}, limit "
            f"{limit.growth / limit.divisor:g}",
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"


def _row(name: str, text: str) -> str:
    return f"{name:<12} {text}"
