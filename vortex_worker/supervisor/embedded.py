"""A workflow inside a PNG: ComfyUI, and SaveImage here, put it into text chunks of the pictures it made.

Only chunk headers and text are read, bounded; pixels are decoded by workers.
"""

from __future__ import annotations

import zlib
from collections.abc import Container

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_TEXT = 16 << 20  # bytes of one text, unpacked


def texts(data: bytes, keywords: Container[str]) -> dict[str, str]:
    """The texts of a PNG by keyword (PNG specification, third edition, 11.3.3): tEXt, zTXt and iTXt.

    Only those of ``keywords``, and of each the first: others are not unpacked, however many there are.

    Raises:
        ValueError: it is no PNG, or a chunk is malformed, in a sentence.
    """
    if not data.startswith(SIGNATURE):
        raise ValueError("it is no PNG")
    found: dict[str, str] = {}
    at = len(SIGNATURE)
    while at + 12 <= len(data):  # length, type, …, checksum
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        if len(body) < length:
            raise ValueError(f"its {kind!r} chunk of {length} bytes is cut off")
        if kind == b"IEND":
            break
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, _, rest = body.partition(b"\0")
            name = keyword.decode("latin-1")
            if name in keywords and name not in found:
                found[name] = _text(kind, rest)
        at += 12 + length
    return found


def _text(kind: bytes, rest: bytes) -> str:
    """What follows the keyword."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _unpacked(rest[1:]).decode("latin-1")
    packed = rest[:1] == b"\1"
    text = rest[2:].split(b"\0", 2)[-1]  # after the language and the translated keyword
    return (_unpacked(text) if packed else text).decode("utf-8", "replace")


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, _MAX_TEXT)
    except zlib.error as error:
        raise ValueError(f"a text of it can't be unpacked: {error}") from None
    if unpacker.unconsumed_tail:
        raise ValueError(f"a text of it unpacks to more than {_MAX_TEXT} bytes")
    return text
