from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FetchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchedOrder(_message.Message):
    __slots__ = ("message_id", "text", "more")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    text: bytes
    more: bool
    def __init__(self, message_id: _Optional[str] = ..., text: _Optional[bytes] = ..., more: _Optional[bool] = ...) -> None: ...

class SiteReply(_message.Message):
    __slots__ = ("message_id", "text", "digest")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    text: bytes
    digest: str
    def __init__(self, message_id: _Optional[str] = ..., text: _Optional[bytes] = ..., digest: _Optional[str] = ...) -> None: ...

class ReplyReceipt(_message.Message):
    __slots__ = ("awaited",)
    AWAITED_FIELD_NUMBER: _ClassVar[int]
    awaited: bool
    def __init__(self, awaited: _Optional[bool] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("digest", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: str
    offset: int
    def __init__(self, digest: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class UploadPiece(_message.Message):
    __slots__ = ("reference", "data")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    reference: BlobReference
    data: bytes
    def __init__(self, reference: _Optional[_Union[BlobReference, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class BlobReference(_message.Message):
    __slots__ = ("digest", "bytes", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: str
    bytes: int
    offset: int
    def __init__(self, digest: _Optional[str] = ..., bytes: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class ArrivedBytes(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...

class UploadReceipt(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class ListenRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ring(_message.Message):
    __slots__ = ("question_id", "question", "revocation")
    QUESTION_ID_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    REVOCATION_FIELD_NUMBER: _ClassVar[int]
    question_id: str
    question: bytes
    revocation: bytes
    def __init__(self, question_id: _Optional[str] = ..., question: _Optional[bytes] = ..., revocation: _Optional[bytes] = ...) -> None: ...

class SiteAnswer(_message.Message):
    __slots__ = ("question_id", "answer")
    QUESTION_ID_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    question_id: str
    answer: bytes
    def __init__(self, question_id: _Optional[str] = ..., answer: _Optional[bytes] = ...) -> None: ...

class AnswerReceipt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Document(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    def __init__(self, json: _Optional[bytes] = ...) -> None: ...
