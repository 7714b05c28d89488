"""Array bytes in gateway.proto's own wire form, framed by hand.

The generated code copies each piece three times more while it holds the interpreter's lock, which
halves the throughput (docs/adr/0002). What is written here, the generated code reads.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from fedfactory.wire.rpc import gateway_pb2 as pb

PIECE_BYTES: Final = 2 * 1024 * 1024

# Field numbers of the bytes, as protobuf tags (number << 3 | 2: length-delimited).
_PIECE_DATA: Final = pb.Piece.DATA_FIELD_NUMBER << 3 | 2
_UPLOAD_DATA: Final = pb.UploadPiece.DATA_FIELD_NUMBER << 3 | 2

Bytes = bytes | memoryview
BlobReference = pb.BlobReference


def piece_to_wire(data: bytes) -> bytes:
    """Serialise `Piece(data=data)`."""
    return _frame(_PIECE_DATA, data)


def piece_from_wire(message: bytes) -> Bytes:
    """Return the data of a serialised `Piece`, without a copy.

    Raises:
        google.protobuf.message.DecodeError: not a Piece.
    """
    data = _framed(_PIECE_DATA, message)
    return pb.Piece.FromString(message).data if data is None else data


def upload_to_wire(part: BlobReference | bytes) -> bytes:
    """Serialise one `UploadPiece`: the reference that begins an upload, or bytes of it."""
    if isinstance(part, bytes):
        return _frame(_UPLOAD_DATA, part)
    return pb.UploadPiece(reference=part).SerializeToString()


def upload_from_wire(message: bytes) -> BlobReference | Bytes:
    """Return what a serialised `UploadPiece` carries.

    Raises:
        google.protobuf.message.DecodeError: not an UploadPiece, or an empty one.
    """
    data = _framed(_UPLOAD_DATA, message)
    if data is not None:
        return data
    piece = pb.UploadPiece.FromString(message)
    match piece.WhichOneof("part"):
        case "reference":
            return piece.reference
        case "data":
            return piece.data
    raise DecodeError("an upload piece carries nothing")


def _frame(tag: int, data: bytes) -> bytes:
    head = bytearray([tag])
    length = len(data)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return b"".join((head, data))


def _framed(tag: int, message: bytes) -> memoryview | None:
    """Return the one field of a message, or None if it is not just that: protobuf then decides."""
    if not message or message[0] != tag:
        return None
    length = 0
    for index, byte in enumerate(message[1:11]):
        length |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            start = index + 2
            return memoryview(message)[start:] if start + length == len(message) else None
    return None
