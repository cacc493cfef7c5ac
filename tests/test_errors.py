"""The error tree: one root, facts as attributes, copies that keep them."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle

import pytest

import gnats
from gnats import errors
from gnats.errors import Error, ServerError, TransportError

pytestmark = pytest.mark.sansio

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, BaseException)
}

# One of each, with the facts that it must carry.
EXAMPLES: list[tuple[Error, dict[str, object]]] = [
    (errors.Error("x"), {}),
    (errors.OptionError("name", "bad"), {"option": "name"}),
    (errors.OptionTypeError("name", "bad"), {"option": "name"}),
    (errors.MissingExtraError("a seed", "nkeys"), {"extra": "nkeys"}),
    (errors.CredentialsError("x"), {}),
    (errors.NonceMissingError(), {}),
    (errors.TLSError("x"), {}),
    (errors.CertificateError("h", "expired"), {"host": "h", "reason": "expired"}),
    (errors.BadURLError("no host"), {"reason": "no host"}),
    (errors.BadSubjectError("a b", "why"), {"subject": "a b", "reason": "why"}),
    (errors.HeaderError("x"), {}),
    (errors.MaxPayloadError(9, 5, "a"), {"size": 9, "max_payload": 5, "subject": "a"}),
    (errors.ConnectionClosedError(), {}),
    (errors.ConnectionReconnectingError("rtt"), {"operation": "rtt"}),
    (errors.ConnectionDrainingError("rtt"), {"operation": "rtt"}),
    (errors.ForkedConnectionError("x"), {}),
    (errors.WrongThreadError("x"), {}),
    (errors.BadSubscriptionError("a"), {"subject": "a"}),
    (
        errors.OutboundBufferLimitError(1, 2, 3, "full"),
        {"size": 1, "buffered": 2, "limit": 3},
    ),
    (errors.TimeoutError("late", 1.5), {"timeout": 1.5}),
    (errors.NoRespondersError("a"), {"subject": "a"}),
    (errors.FlushInterruptedError(), {}),
    (
        errors.DrainTimeoutError(2.0, 3, 4),
        {"timeout": 2.0, "pending_msgs": 3, "buffered_msgs": 4},
    ),
    (errors.TransportError("x"), {}),
    (errors.UnexpectedEOF(), {}),
    (errors.WriteStalledError(3.0), {"timeout": 3.0}),
    (errors.StaleConnectionError("x", 2), {"outstanding": 2}),
    (errors.ReconnectForcedError(), {}),
    (errors.ProtocolError("x", [1, 2]), {"events": [1, 2]}),
    (errors.NoServersError({}), {"failures": {}}),
    (errors.ServerError("words"), {"text": "words"}),
    (errors.AuthorizationError("words"), {"text": "words"}),
    (errors.AuthenticationExpiredError("words"), {"text": "words"}),
    (errors.MaxConnectionsError("words"), {"text": "words"}),
    (
        errors.PermissionsError("words", "publish", "a", "q"),
        {"text": "words", "operation": "publish", "subject": "a", "queue": "q"},
    ),
    (
        errors.FrameRefusedError("words", "publish", "a", 9),
        {"text": "words", "operation": "publish", "subject": "a", "size": 9},
    ),
    (errors.SecureConnRequiredError("x"), {}),
    (errors.SecureConnWantedError("x"), {}),
    (
        errors.SlowConsumerError("a", 1, 2, 3),
        {"subject": "a", "sid": 1, "pending_msgs": 2, "pending_bytes": 3},
    ),
    (errors.CallbackError(KeyboardInterrupt()), {}),
    (errors.HandlerError("a", KeyError("k")), {"subject": "a"}),
]

each_example = pytest.mark.parametrize(
    ("error", "facts"), EXAMPLES, ids=[type(error).__name__ for error, _ in EXAMPLES]
)


def test_every_class_has_an_example() -> None:
    assert {type(error) for error, _ in EXAMPLES} == set(CLASSES.values())


@pytest.mark.parametrize("kind", list(CLASSES.values()), ids=list(CLASSES))
def test_one_root_and_a_docstring(kind: type[BaseException]) -> None:
    assert issubclass(kind, Error)
    assert kind.__doc__
    assert kind.__module__ == "gnats.errors"


def test_the_root_is_an_ordinary_exception() -> None:
    assert issubclass(Error, Exception)
    assert gnats.errors.Error is Error


@pytest.mark.parametrize(
    ("kind", "parent"),
    [
        (errors.TimeoutError, builtins.TimeoutError),
        (errors.TimeoutError, OSError),
        (errors.DrainTimeoutError, errors.TimeoutError),
        (errors.OptionError, ValueError),
        (errors.OptionTypeError, TypeError),
        (errors.OptionTypeError, errors.OptionError),
        (errors.BadURLError, ValueError),
        (errors.BadSubjectError, ValueError),
        (errors.HeaderError, ValueError),
        (errors.MaxPayloadError, ValueError),
        (errors.UnexpectedEOF, TransportError),
        (errors.WriteStalledError, TransportError),
        (errors.AuthorizationError, ServerError),
        (errors.AuthenticationExpiredError, errors.AuthorizationError),
        (errors.MaxConnectionsError, ServerError),
        (errors.PermissionsError, ServerError),
    ],
)
def test_kinship(kind: type, parent: type) -> None:
    assert issubclass(kind, parent)


@each_example
def test_facts_and_a_message(error: Error, facts: dict[str, object]) -> None:
    for name, value in facts.items():
        assert getattr(error, name) == value
    assert str(error).strip()


@each_example
def test_copies_and_pickles_keep_the_facts(error: Error, facts: dict[str, object]) -> None:
    twins = [copy.copy(error), copy.deepcopy(error)]
    twins += [pickle.loads(pickle.dumps(error, n)) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for twin in twins:
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.args == error.args
        for name, value in facts.items():
            assert getattr(twin, name) == value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.MaxPayloadError(9, 5, "a.b"), ["9", "5", "a.b"]),
        (errors.OptionError("reconnect_wait", "too long"), ["reconnect_wait", "too long"]),
        (errors.OutboundBufferLimitError(11, 22, 33, "full"), ["11", "22", "33", "full"]),
        (errors.DrainTimeoutError(1.99966, 3, 4, "slow"), ["within 2 s", "3", "4", "slow"]),
        (errors.NoRespondersError("svc.x"), ["svc.x"]),
        (errors.SlowConsumerError("s.y", 1, 77, 88), ["s.y", "77", "88"]),
        (errors.WriteStalledError(3.5), ["3.5", "write_timeout"]),
        (errors.ServerError("Some Words"), ["Some Words"]),
        (errors.BadSubjectError("a b", "why", what="queue name"), ["'a b'", "why", "queue name"]),
        (errors.BadSubscriptionError("s.z"), ["s.z"]),
        (errors.BadSubscriptionError("s.z", "ended by the server"), ["ended by the server"]),
    ],
)
def test_messages_say_the_facts(error: Error, words: list[str]) -> None:
    for word in words:
        assert word in str(error)


def test_no_servers_names_each_server_and_its_failure() -> None:
    failures = {"nats://a:1": TransportError("refused"), "nats://b:2": errors.UnexpectedEOF()}
    error = errors.NoServersError(failures)
    assert error.failures == failures
    assert "nats://a:1: refused" in str(error)
    assert "nats://b:2: the server closed the link" in str(error)
    failures.clear()
    assert len(error.failures) == 2
    assert pickle.loads(pickle.dumps(error)).failures.keys() == error.failures.keys()
    assert errors.NoServersError().failures == {}


def test_protocol_error_has_its_own_list() -> None:
    given = [1]
    error = errors.ProtocolError("x", given)
    error.events.append(2)
    assert given == [1]
    assert errors.ProtocolError("x").events == []


@pytest.mark.parametrize(
    "error",
    [
        errors.BadSubjectError("s" * 100_000),
        errors.NoRespondersError("s" * 100_000),
        errors.BadSubscriptionError("s" * 100_000),
        errors.MaxPayloadError(9, 5, "s" * 100_000),
        errors.SlowConsumerError("s" * 100_000, 1, 2, 3),
    ],
)
def test_messages_stay_short(error: Error) -> None:
    assert len(str(error)) < 500


def test_the_builtin_timeout_catches_ours() -> None:
    with pytest.raises(TimeoutError):  # the builtin
        raise errors.TimeoutError("late", 1.0)
