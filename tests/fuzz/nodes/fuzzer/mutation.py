"""Seeded mutation, of bytes and of messages field by field. Runs in tests, and in the hostile worker."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

EDGES = [0, 1, 2, 63, 64, 127, 128, 255, 256, (1 << 16) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1]
TEXTS = ["", "a", "tensor", "MODEL", "\x1b[2J", "\0", "\u202e", "\U0010ffff", "é" * 40, "x" * 3000, "WK-004", "CHOICE"]


def number(rng: random.Random, low: int, high: int, near: tuple[int, ...] = ()) -> int:
    """A whole number of a type's range: an edge, near one of ``near``, or any."""
    how = rng.random()
    if near and how < 0.5:
        value = rng.choice(near) + rng.choice((0, 1, -1, 64, -64, 4096))
    elif how < 0.9:
        value = rng.choice(EDGES) * rng.choice((1, -1))
    else:
        value = rng.randint(low, high)
    return min(max(value, low), high)


def mutate_bytes(rng: random.Random, data: bytes, others: tuple[bytes, ...] = (b"",)) -> bytes:
    """``data`` after one to four changes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        what = rng.randrange(7)
        if what == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif what == 2:
            del out[at : at + rng.randint(1, 8)]
        elif what == 3:
            out[at:at] = rng.randbytes(rng.randint(1, 8))
        elif what == 4:
            width = rng.choice((1, 2, 4, 8))
            out[at : at + width] = (rng.choice(EDGES) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        elif what == 5:
            out[at:] = rng.choice(others)[at:]
        else:
            out[at:at] = out[at : at + rng.randint(1, 32)]
    return bytes(out)


def mutate_message(rng: random.Random, message: Message, near: tuple[int, ...] = ()) -> None:
    """Change one field, somewhere in ``message``, to something that its type can hold."""
    inside = rng.choice([message, *_below(message)])
    fields = inside.DESCRIPTOR.fields
    if fields:
        _change(rng, inside, rng.choice(fields), near)


def _below(message: Message) -> list[Message]:
    """Every message inside this one."""
    found = []
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        entry = field.message_type
        if entry.GetOptions().map_entry:
            inner = list(value.values()) if entry.fields_by_name["value"].message_type else []
        else:
            inner = list(value) if field.is_repeated else [value]
        for item in inner:
            found += [item, *_below(item)]
    return found


def _change(rng: random.Random, message: Message, field: FieldDescriptor, near: tuple[int, ...]) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        items = getattr(message, field.name)
        value = field.message_type.fields_by_name["value"]
        if rng.random() < 0.2 or len(items) > 20:
            items.clear()
        elif value.message_type is None:
            items[rng.choice(TEXTS)] = rng.choice(TEXTS)
        else:
            _fill(rng, items[rng.choice(TEXTS)], near)
    elif field.is_repeated:
        items = getattr(message, field.name)
        if len(items) and (rng.random() < 0.5 or len(items) > 40):
            del items[rng.randrange(len(items)) :]
        elif field.message_type is not None:
            _fill(rng, items.add(), near)
        else:
            items.extend(_scalar(rng, field, near) for _ in range(rng.choice((1, 1, 2, 33))))
    elif field.message_type is not None:
        if message.HasField(field.name) and rng.random() < 0.3:
            message.ClearField(field.name)
        else:
            inner = getattr(message, field.name)
            inner.SetInParent()
            _fill(rng, inner, near)
    else:
        setattr(message, field.name, _scalar(rng, field, near))


def _fill(rng: random.Random, message: Message, near: tuple[int, ...]) -> None:
    """One field of a message that was just made."""
    fields = message.DESCRIPTOR.fields
    if fields and rng.random() < 0.8:
        _change(rng, message, rng.choice(fields), near)


def _scalar(rng: random.Random, field: FieldDescriptor, near: tuple[int, ...]) -> Any:
    make: dict[int, Callable[[], Any]] = {
        FieldDescriptor.CPPTYPE_INT32: lambda: number(rng, -(1 << 31), (1 << 31) - 1),
        FieldDescriptor.CPPTYPE_INT64: lambda: number(rng, -(1 << 63), (1 << 63) - 1, near),
        FieldDescriptor.CPPTYPE_UINT32: lambda: number(rng, 0, (1 << 32) - 1),
        FieldDescriptor.CPPTYPE_UINT64: lambda: number(rng, 0, (1 << 64) - 1, near),
        FieldDescriptor.CPPTYPE_DOUBLE: lambda: rng.choice((0.0, 1.5, math.nan, math.inf, -0.0, 1e308)),
        FieldDescriptor.CPPTYPE_BOOL: lambda: rng.random() < 0.5,
        FieldDescriptor.CPPTYPE_ENUM: lambda: rng.choice((0, 1, 2, 3, 12, 17, 18, 99, -1, (1 << 31) - 1)),
        FieldDescriptor.CPPTYPE_STRING: lambda: (
            rng.randbytes(rng.randrange(40)) if field.type == FieldDescriptor.TYPE_BYTES else rng.choice(TEXTS)
        ),
    }
    return make[field.cpp_type]()
