"""What may be published: any bytes-like object, and str. Pure."""

from __future__ import annotations

Payload = object  # bytes, bytearray, memoryview or str; to_bytes() is the judge


def to_bytes(payload: Payload) -> bytes:
    """Any bytes-like object as bytes, a str as UTF-8. Raises TypeError for anything else."""
    if isinstance(payload, bytes):
        return bytes(payload)
    if isinstance(payload, str):
        return payload.encode()
    if isinstance(payload, (bytearray, memoryview)):
        return bytes(payload)
    try:
        return memoryview(payload).tobytes()  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"payload: bytes-like or str is needed, not {type(payload).__name__}"
        ) from None
