from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FleetMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FLEET_METHOD_UNSPECIFIED: _ClassVar[FleetMethod]
    ACTIVATE_NODE: _ClassVar[FleetMethod]
    DEACTIVATE_NODE: _ClassVar[FleetMethod]
    SEND_NODE_HEARTBEAT: _ClassVar[FleetMethod]
    PULL_MESSAGES: _ClassVar[FleetMethod]
    PUSH_MESSAGES: _ClassVar[FleetMethod]
    PUSH_OBJECT: _ClassVar[FleetMethod]
    PULL_OBJECT: _ClassVar[FleetMethod]
    CONFIRM_MESSAGE_RECEIVED: _ClassVar[FleetMethod]
FLEET_METHOD_UNSPECIFIED: FleetMethod
ACTIVATE_NODE: FleetMethod
DEACTIVATE_NODE: FleetMethod
SEND_NODE_HEARTBEAT: FleetMethod
PULL_MESSAGES: FleetMethod
PUSH_MESSAGES: FleetMethod
PUSH_OBJECT: FleetMethod
PULL_OBJECT: FleetMethod
CONFIRM_MESSAGE_RECEIVED: FleetMethod

class TunnelRequest(_message.Message):
    __slots__ = ("method", "body", "public_key", "timestamp", "signature")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    method: FleetMethod
    body: bytes
    public_key: bytes
    timestamp: str
    signature: bytes
    def __init__(self, method: _Optional[_Union[FleetMethod, str]] = ..., body: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., timestamp: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class TunnelReply(_message.Message):
    __slots__ = ("status", "body")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    status: int
    body: bytes
    def __init__(self, status: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

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
    __slots__ = ("question_id", "question", "messages", "revocation")
    QUESTION_ID_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    REVOCATION_FIELD_NUMBER: _ClassVar[int]
    question_id: str
    question: bytes
    messages: int
    revocation: bytes
    def __init__(self, question_id: _Optional[str] = ..., question: _Optional[bytes] = ..., messages: _Optional[int] = ..., revocation: _Optional[bytes] = ...) -> None: ...

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
