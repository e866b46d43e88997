"""The one honest latency measurement."""
