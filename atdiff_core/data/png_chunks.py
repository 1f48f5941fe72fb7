"""What a PNG says of itself: its header, and whether its chunks are whole (W3C PNG specification, section 5)."""

import zlib
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER, END = b"IHDR", b"IEND"
LENGTH_AND_TYPE, CHECKSUM, FIELDS = Struct(">I4s"), Struct(">I"), Struct(">IIBBBBB")


class PngHeader(NamedTuple):
    """The fields of the header: ``depth`` in bits, ``colour`` 0 for grey and 2 for RGB, the last three mostly 0."""

    width: int
    height: int
    depth: int
    colour: int
    compression: int
    filtering: int
    interlacing: int


def checked_header(content: bytes) -> PngHeader:
    """The header of a PNG whose chunks all have the checksums that they say.

    Raises:
        ValueError: If it is none, or not whole.
    """
    if not content.startswith(SIGNATURE):
        raise ValueError("it does not begin as a PNG does")
    view, place, header = memoryview(content), len(SIGNATURE), None
    try:
        while True:
            length, kind = LENGTH_AND_TYPE.unpack_from(content, place)
            start, stop = place + LENGTH_AND_TYPE.size, place + LENGTH_AND_TYPE.size + length
            if zlib.crc32(view[start - len(kind) : stop]) != CHECKSUM.unpack_from(content, stop)[0]:
                raise ValueError(f"the checksum of its {kind.decode('latin-1')!r} chunk differs")
            if header is None:
                if kind != HEADER or length != FIELDS.size:
                    raise ValueError("its first chunk is not its header")
                header = PngHeader(*FIELDS.unpack_from(content, start))
            if kind == END:
                return header
            place = stop + CHECKSUM.size
    except StructError:
        raise ValueError("it is cut off") from None
