"""Permissions of a state folder: it holds rows, predictions and feedback, so only its owner can read it."""

from __future__ import annotations

from pathlib import Path

from mlflowkit.system.files import OTHERS, close_to_others


def close_state(state: Path) -> str:
    """Close a state folder that others can read (of an earlier version, or a copy); returns what to tell, or "".

    >>> import tempfile
    >>> state = Path(tempfile.mkdtemp())
    >>> close_state(state), state.chmod(0o755)
    ('', None)
    >>> close_state(state).partition(" (")[0] == f"{state} was open to other users of this machine"
    True
    """
    if not state.is_dir():
        return ""
    mode = state.stat().st_mode & 0o777
    changed = close_to_others(state)
    if changed:
        entries = f"{changed:,} {'entry' if changed == 1 else 'entries'} of it"
        return f"{state} was open to other users of this machine (mode {mode:o}); closed {entries}"
    if state.stat().st_mode & OTHERS:
        return f"{state} is open to other users of this machine (mode {mode:o}) and belongs to someone else"
    return ""
