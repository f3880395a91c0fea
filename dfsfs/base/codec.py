"""Strict, canonical msgpack: what goes on the wire and into rows.

Encoding is deterministic (maps sorted by key, shortest forms), so equal values have equal bytes.
Decoding checks size, depth and item count before it builds anything large, and raises
`RemoteProtocolError` for every malformed input: callers never see a msgpack exception.
Pure; safe in any thread.
"""

from typing import Any

import msgpack

from dfsfs.base.errors import LocalProtocolError, RemoteProtocolError
from dfsfs.base.limits import CODEC_DEPTH_MAX, CODEC_ITEMS_MAX


def encode(value: Any) -> bytes:
    """Encode None, bool, int, float, str, bytes, list/tuple and dict.

    Raises:
        LocalProtocolError: a type or integer that msgpack cannot carry.
    """
    try:
        return bytes(msgpack.packb(_canonical(value), use_bin_type=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot encode: {error}") from error


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    if isinstance(value, _LISTS):  # most items are scalars: they need no call
        return [_canonical(item) if isinstance(item, _COMPOSITES) else item for item in value]
    return value


_LISTS = (list, tuple)
_COMPOSITES = (list, tuple, dict)


def decode(data: bytes | memoryview, *, size_max: int) -> Any:
    """Decode one value that fills `data` exactly. Arrays come back as lists.

    Raises:
        RemoteProtocolError: malformed, too large, too deep, too many items, or trailing bytes.
    """
    if len(data) > size_max:
        raise RemoteProtocolError(f"message of {len(data)} bytes, limit {size_max}")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            max_array_len=CODEC_ITEMS_MAX,
            max_map_len=CODEC_ITEMS_MAX,
            max_bin_len=size_max,
            max_str_len=size_max,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"malformed message: {type(error).__name__}") from error
    _check_depth(value, CODEC_DEPTH_MAX)
    return value


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise RemoteProtocolError("message nested too deep")
    if isinstance(value, list):
        for item in value:
            if isinstance(item, list | dict):
                _check_depth(item, left - 1)
    elif isinstance(value, dict):
        for item in value.values():
            if isinstance(item, list | dict):
                _check_depth(item, left - 1)
