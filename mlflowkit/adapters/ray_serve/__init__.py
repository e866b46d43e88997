"""Gateways on Ray Serve, kept running by a reconciler process under a supervisor.

The **reconciler** is one process per state folder (``python -m mlflowkit.adapters.ray_serve.reconciler STATE``). It
starts a local Ray (or attaches to the one ``RAY_ADDRESS`` names), starts Serve without its proxies, and reconciles each
service with its ``service.json``. ``mlkit`` itself never imports Ray to serve: it writes files, waits for files and
sends HTTP requests. The kernel ends the local Ray's processes with the reconciler, so stopping the reconciler stops
everything it started and nothing else on the machine.

``<state>/ray/cluster.json`` records where the local Ray is, so that distributed training can attach to it::

    {"state": "ready", "address": "127.0.0.1:42617", "owned": true, "steward": {"pid": ..., "started": ...},
     "temp_dir": "/tmp/mlkit-...", "environment": {"RAY_ADDRESS": ..., "RAY_AUTH_MODE": "token", ...}, "message": ""}

``state`` is starting, ready, failed or stopped; ``steward`` identifies the supervisor. To attach, put ``environment``
into ``os.environ`` before importing Ray, then call ``ray.init()``. `cluster.read` returns the record, or None when its
supervisor is dead.
"""

from __future__ import annotations

from mlflowkit.adapters.ray_serve.platform import RayServePlatform

__all__ = ["RayServePlatform"]
