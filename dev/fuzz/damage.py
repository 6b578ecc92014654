"""Damage of a file's bytes: single bits, lengths, types, names and numbers of the header."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

_INTEGERS = (0, 1, 2, 7, 255, 65_536, 65_537, 1 << 31, (1 << 32) - 1, 1 << 62, 1 << 63)
_EXTREMES = (*_INTEGERS, (1 << 64) - 1, 100_000_000, 1 << 40)
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I64", "I8", "U64", "BOOL")


def damage(data: bytes, random: Random) -> bytes:
    """Damage a file in one to three places."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        kinds: tuple[Callable[[bytes, Random], bytes], ...]
        if data[:4] == b"GGUF":
            kinds = (_bytes, _gguf_field, _gguf_field, _gguf_field)
        elif data[8:9] == b"{":
            kinds = (_bytes, _entry, _entry, _entry, _entry)
        elif data[:1] == b"{":
            kinds = (_bytes, _json_file)
        else:
            kinds = (_bytes,)
        data = random.choice(kinds)(data, random)
    return data


def _bytes(data: bytes, random: Random) -> bytes:
    """Change bytes without regard to the format, in the header more often than behind it."""
    near = min(len(data), random.choice((64, 4096, len(data))))
    at = random.randrange(near) if near else 0
    kind = random.randrange(6)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + random.randbytes(random.choice((1, 8, 100))) + data[at:]
    if kind == 2:
        return data[:at] + data[at + random.choice((1, 4, 8, 64)) :]
    if kind == 3:
        return data[:at] + struct.pack("<Q", random.choice(_EXTREMES)) + data[at + 8 :]
    if kind == 4:
        return data + bytes(random.choice((1, 32, 5000)))
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 4, 32)) if near else 0):
        changed[random.randrange(near)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _gguf_field(data: bytes, random: Random) -> bytes:
    """Set a number of the header: a count, length, type, dimension or offset."""
    fields = _gguf_fields(data)
    at, size = random.choice(fields)
    if size == 4 and random.random() < 0.7:
        value = random.randrange(45)
    elif random.random() < 0.5:
        old = int.from_bytes(data[at : at + size], "little")
        value = random.choice((old + 1, old - 1, old * 2, old // 2, -old, old << 32))
    else:
        value = random.choice(_EXTREMES)
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]


def _gguf_fields(data: bytes) -> list[tuple[int, int]]:
    """List position and size of the header's numbers, as far as the header can be followed."""
    found: list[tuple[int, int]] = []
    at = 4

    def number(size: int) -> int:
        nonlocal at
        if at + size > len(data):
            raise EOFError
        found.append((at, size))
        at += size
        return int.from_bytes(data[at - size : at], "little")

    try:
        number(4)
        num_tensors, num_keys = number(8), number(8)
        for _ in range(num_keys):
            at += number(8)
            kind, count = number(4), 1
            if kind == _ARRAY:
                kind, count = number(4), number(8)
            for _ in range(min(count, len(data))):
                at += number(8) if kind == _STRING else 0 * number(_SCALAR_BYTES.get(kind, 8))
        for _ in range(num_tensors):
            at += number(8)
            for _ in range(number(4)):
                number(8)
            number(4), number(8)
    except EOFError:
        pass  # damaged before: what lies ahead can be reached
    return found or [(0, min(4, len(data)))]


def _entry(data: bytes, random: Random) -> bytes:
    """Change an entry of a safetensors header, and write a header that fits its length."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return _bytes(data, random)
    if not isinstance(header, dict) or not header:
        return _bytes(data, random)
    text = _encode(_changed(header, random), random)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _json_file(data: bytes, random: Random) -> bytes:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, random)
    return _encode(_changed(parsed, random), random) if isinstance(parsed, dict) else data


def _changed(header: dict[str, Any], random: Random) -> dict[str, Any]:
    """Change one name or value at any depth."""
    if not header:
        return {"x": _value(random)}
    name = random.choice(list(header))
    value = header[name]
    if isinstance(value, dict) and random.random() < 0.85:
        return {**header, name: _changed(value, random)}
    kind = random.randrange(6)
    if kind == 0:
        return {k: v for k, v in header.items() if k != name}
    if kind == 1:
        other = random.choice((*header, name + "x", "", "\ud800", "\0", name * 100, name[:-1]))
        return {other if k == name else k: v for k, v in header.items()}
    if name == "shape" and isinstance(value, list):
        return _reshaped(header, value, random)
    if isinstance(value, list) and value and random.random() < 0.7:
        at = random.randrange(len(value))
        return {**header, name: [*value[:at], _value(random), *value[at + 1 :]]}
    return {**header, name: random.choice(_DTYPES) if name == "dtype" else _value(random)}


def _reshaped(entry: dict[str, Any], shape: list[Any], random: Random) -> dict[str, Any]:
    """Give another shape, of as many elements or not."""
    kind = random.randrange(5)
    if kind == 0:
        return {**entry, "shape": list(reversed(shape))}
    if kind == 1:
        return {**entry, "shape": [1] * random.choice((1, 3, 60, 70)) + shape}
    if kind == 2:
        begin = entry.get("data_offsets", [0])
        begin = begin[0] if isinstance(begin, list) and begin else 0
        empty = random.choice(([0], [0, 4], [4, 0], [0, 1 << 62, 1 << 62], [1 << 64, 0]))
        return {**entry, "shape": empty, "data_offsets": [begin, begin]}
    if kind == 3 and all(type(n) is int for n in shape):
        count = 1
        for n in shape:
            count *= n
        return {**entry, "shape": random.choice(([count], [count, 1], [1, count]))}
    return {**entry, "shape": [*shape[:-1], _value(random)]}


def _value(random: Random) -> Any:
    """Give a value of any kind, extreme or not."""
    return random.choice(
        (
            *(None, True, "", "\ud800", "\0", "x" * 100_000, "NaN", "1e999", "9" * 400),
            *(-1, 1.5, float("nan"), float("inf"), 10**400, 10**4299, [], {}, [0, 0], {"a": [1]}),
            *(random.choice(_EXTREMES), [10**4000] * 2, [[]] * 3, _nested(random)),
            *('{"layers": 3}', '{"num_heads": 1e999}', '{"lora_alpha": 1%s}' % ("0" * 400)),
            *('{"model": {"num_heads": [1]}}', "[" * 100_000, '{"alpha_pattern": {"": NaN}}'),
        )
    )


def _nested(random: Random) -> Any:
    value: Any = 0
    for _ in range(random.choice((10, 400, 900))):
        value = [value]
    return value


def _encode(value: dict[str, Any], random: Random) -> bytes:
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):
        text = '{"a":' * 50_000
    if random.random() < 0.02:  # a name that occurs twice
        text = text[:-1] + "," + text[1:]
    return text.encode()
