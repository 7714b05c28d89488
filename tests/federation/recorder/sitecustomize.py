"""Loaded by every Python process of one test's federation: an agent's copy writes down what leaves.

Every message that an agent hands to gRPC passes a serialiser; here its bytes are also appended to a
file. The agent has no other connection (test_processes.py shows that).
"""

from __future__ import annotations

import os
import sys

if "site_agents.cli.main" in sys.orig_argv and "RECORD_FOLDER" in os.environ:
    import grpc

    site = os.path.basename(sys.orig_argv[sys.orig_argv.index("--home") + 1])
    record = open(os.path.join(os.environ["RECORD_FOLDER"], site), "ab", buffering=0)  # noqa: SIM115
    plain_channel = grpc.secure_channel

    class RecordingChannel:
        def __init__(self, channel: grpc.Channel) -> None:
            self._channel = channel

        def __enter__(self):
            self._channel.__enter__()
            return self

        def __exit__(self, *exception):
            return self._channel.__exit__(*exception)

        def __getattr__(self, name: str):
            found = getattr(self._channel, name)
            if name not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
                return found

            def make(method, request_serializer=None, *arguments, **keywords):
                def recorded(message):
                    data = request_serializer(message) if request_serializer else message
                    record.write(data)
                    return data

                return found(method, recorded, *arguments, **keywords)

            return make

    grpc.secure_channel = lambda *a, **k: RecordingChannel(plain_channel(*a, **k))
