"""What several tests use: small worlds, recorded files, drills that run as programs, and helpers."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository: the folder that programs of tests need on PYTHONPATH."""
