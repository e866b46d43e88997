"""The messages of open_inference.proto, in a descriptor pool of their own.

In the default pool, they would clash with those of another client of the protocol in the same process: all of them
describe the package ``inference``, and no two in the same words.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

SERVICE = "inference.GRPCInferenceService"


class Messages:
    """Message classes by name, as attributes."""

    def __init__(self) -> None:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

        described = resources.files("mlflowkit.serving.grpc").joinpath("open_inference.binpb").read_bytes()
        files = descriptor_pb2.FileDescriptorSet.FromString(described)
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        self._classes = {
            message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{message.name}"))
            for file in files.file
            for message in file.message_type
        }

    def __getattr__(self, name: str) -> Any:
        try:
            return self._classes[name]
        except KeyError:
            raise AttributeError(f"open_inference.proto has no message {name}") from None


@cache
def messages() -> Messages:
    """The messages; protobuf is imported, and they are made, when they are first asked for."""
    return Messages()
