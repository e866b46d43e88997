"""Binds the gRPC server of a Ray Serve replica to loopback where Ray itself listens on loopback only."""

from __future__ import annotations

import ray


def keep_to_loopback() -> None:
    """Where Ray keeps to loopback, make this replica's own gRPC server keep to it too.

    Serve opens one on every interface when the replica is created, checks no token there, and unpickles incoming
    requests (ray 2.60, ``ray/serve/_private/replica.py``); its address is not configurable.
    """
    if ray.util.get_node_ip_address() != "127.0.0.1":
        return
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))
