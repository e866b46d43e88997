"""Gateways on Ray Serve, kept running by a steward.

The **steward** is one process a state folder (``python -m mlflowkit.adapters.ray_serve.reconciler STATE``). It starts a
local Ray (or attaches to the one that ``RAY_ADDRESS`` names),
starts Serve without its proxies, and keeps each service at what its ``service.json`` says. ``mlkit`` itself never
imports Ray to serve: it writes files, waits for others and asks over HTTP. The local Ray's processes die with
the steward (the kernel sees to that), so stopping the steward stops all of it, and nothing else on the machine.

``<state>/ray/cluster.json`` says where the local Ray is, for others who can use it, such as distributed training::

    {"state": "ready", "address": "127.0.0.1:42617", "owned": true, "steward": {"pid": ..., "started": ...},
     "temp_dir": "/tmp/mlkit-...", "environment": {"RAY_ADDRESS": ..., "RAY_AUTH_MODE": "token", ...}, "message": ""}

``state`` is starting, ready, failed or stopped. To attach, put ``environment`` into ``os.environ`` before Ray is
imported and call ``ray.init()``. `cluster.read` returns the record, and None for one whose steward is dead.
"""

from __future__ import annotations

from mlflowkit.adapters.ray_serve.platform import RayServePlatform

__all__ = ["RayServePlatform"]
