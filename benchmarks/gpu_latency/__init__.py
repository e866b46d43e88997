"""Inference latency of whole models on what this machine has: every runtime, precision and batch size in one table.

`models` are the networks, `exports` their graphs, `plan` the grid of candidates, `child` one candidate in a process of
its own, `measure` a group of candidates in turns, `ahead` engines built for GPUs that are not here, `serving` the same
through a gateway, `summary` what a reader wants to know first, `page` how it is shown.
"""
