"""TLS for the gateway and its callers: both show a certificate of the one pinned authority."""

from __future__ import annotations

import ipaddress
import os
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

MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
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
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 10_000),
)
SERVER_OPTIONS: Final = (
    *_COMMON,
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 4),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.so_reuseport", 0),
)


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Credentials of the gateway: callers must show a certificate of our authority."""
    return grpc.ssl_server_credentials(
        [(identity.key_pem, identity.certificate_pem)],
        root_certificates=identity.authority_pem,
        require_client_auth=True,
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
