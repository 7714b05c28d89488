"""TLS for the gateway and its callers: both show a certificate of the one pinned authority.

Roles are checked both ways: the gateway reads its caller's at every call (identity/roles.py). A
caller's TLS takes none but a server's certificate, by its extended key usage, and the authority
gives that usage to the role coordinator alone, which is the only one to name hosts as well.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable
from typing import Final

# grpcio sets no minimum TLS version; 1.2 may be spoken only with forward-secret AEAD suites. Read
# once, when grpc loads.
os.environ.setdefault(
    "GRPC_SSL_CIPHER_SUITES",
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384",
)

import grpc

from fedfactory.identity.enrolment import Identity

log = logging.getLogger("fedfactory.gateway")

# The largest message of any method (methods.py) and a little; each method has its own limit.
MAX_MESSAGE_BYTES: Final = 5 * 1024 * 1024
KEEPALIVE_MS: Final = 20_000
# One piece of an array travels in a couple of HTTP/2 frames, not in 128 (docs/adr/0002).
_FRAME_BYTES: Final = 1024 * 1024
_COMMON: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS // 2),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_frame_size", _FRAME_BYTES),
)
_CALLER_OPTIONS: Final = (
    *_COMMON,
    # gRPC's own limit is two minutes: far too long for a gateway that was only restarted.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long one attempt may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
SERVER_OPTIONS: Final = (
    *_COMMON,
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 4),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.so_reuseport", 0),
    # Metadata is ours alone and small.
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # Who knocks and says nothing, or has long had nothing to say, is let go.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
)


def server_credentials(identity: Callable[[], Identity]) -> grpc.ServerCredentials:
    """Credentials of the gateway: callers must show a certificate of our authority.

    `identity` is asked at every handshake; certificate and authority may change while we serve.
    """
    shown = identity()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        try:
            now = identity()
        except Exception:  # in gRPC's own thread: the identity we have goes on
            log.exception("the gateway's identity cannot be read; the one before goes on")
            return None
        if now == shown:
            return None
        shown = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(shown),
        renewed,  # type: ignore[arg-type]  # None is for "as before"; the stubs forget it
        require_client_authentication=True,
    )


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem, identity.certificate_pem)], root_certificates=identity.authority_pem
    )


def channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Credentials of a caller: our authority alone is trusted."""
    return grpc.ssl_channel_credentials(
        root_certificates=identity.authority_pem,
        private_key=identity.key_pem,
        certificate_chain=identity.certificate_pem,
    )


def open_channel(address: str, identity: Identity) -> grpc.Channel:
    """Open a channel to the gateway at 'host:port'. Loopback never goes through a proxy."""
    proxied = int(not is_loopback(address))
    return grpc.secure_channel(
        address,
        channel_credentials(identity),
        options=(*_CALLER_OPTIONS, ("grpc.enable_http_proxy", proxied)),
    )


def is_loopback(address: str) -> bool:
    """Whether 'host:port' names this machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
