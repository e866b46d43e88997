"""gzip of bodies: requests within the limits of uncompressed ones, replies where a client asks for it.

A compressed request is decompressed piece by piece, and refused as soon as it exceeds the limit on bodies: a bomb costs
what a body of the limit costs. Source: RFC 9110, sections 8.4 and 12.5.3; RFC 1952.
"""

from __future__ import annotations

import asyncio
import zlib

from mlflowkit.serving.protocol.binary_tensors import Buffer
from mlflowkit.serving.protocol.http_error import CLOSE, RequestError, bad_request

MIN_REPLY_BYTES = 4096
"""A reply of less is sent as it is: compressing it takes longer than sending it."""
MAX_RATIO = 200
"""A body that is larger than FREE_BYTES may be this many times its compressed size."""
FREE_BYTES = 1 << 20
_INLINE_BYTES = 64 << 10
"""A body of more is handled in a thread, so that it does not hold up the other requests."""
_GZIP = 16 + zlib.MAX_WBITS
_CODINGS = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": zlib.MAX_WBITS}


def check_encoding(encoding: bytes) -> int:
    """zlib's window for a Content-Encoding, 0 for none. Raises RequestError(415).

    >>> check_encoding(b"Identity"), check_encoding(b"gzip")
    (0, 31)
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return 0
    if name not in _CODINGS:
        shown = encoding[:40].decode("latin-1")
        raise RequestError(415, f"content-encoding {shown} is not supported; gzip, deflate and identity are", CLOSE)
    return _CODINGS[name]


async def decode_body(body: Buffer, encoding: bytes, limit: int) -> Buffer:
    """A request's body without its Content-Encoding. Raises RequestError: 400, 413, 415."""
    window = check_encoding(encoding)
    if not window:
        return body
    if len(body) <= _INLINE_BYTES:
        return decompress(body, window, limit)
    return await asyncio.to_thread(decompress, body, window, limit)


def decompress(body: Buffer, window: int, limit: int) -> bytes:
    """The content of a compressed body. Raises RequestError: 400 where it is damaged, 413 beyond the limits.

    >>> decompress(zlib.compress(b"{}"), zlib.MAX_WBITS, 100)
    b'{}'
    """
    limit = min(limit, max(FREE_BYTES, MAX_RATIO * len(body)))
    decompressor = zlib.decompressobj(window)
    try:
        result = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise bad_request(f"the body is not what content-encoding says: {error}") from error
    if len(result) > limit:
        more = f"at most {limit} are read, and {MAX_RATIO} times its compressed size"
        raise RequestError(413, f"the body has more than {limit} bytes when decompressed; {more}")
    if not decompressor.eof:
        raise bad_request("the body is not what content-encoding says: its end is missing")
    if decompressor.unused_data:
        raise bad_request("the body is not what content-encoding says: bytes follow its end")
    return result


def accepts_gzip(value: bytes) -> bool:
    """Whether Accept-Encoding asks for gzip.

    >>> [accepts_gzip(value) for value in (b"gzip, deflate", b"br;q=1.0, GZIP;q=0.8", b"gzip;q=0", b"*", b"")]
    [True, True, False, False, False]
    """
    for part in value.lower().split(b","):
        name, _, weight = part.partition(b";")
        if name.strip() in (b"gzip", b"x-gzip"):
            return weight.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
    return False


async def encode_reply(body: Buffer) -> bytes:
    """A reply's body in gzip."""
    return _compress(body) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(_compress, body)


def _compress(body: Buffer) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    return compressor.compress(body) + compressor.flush()
