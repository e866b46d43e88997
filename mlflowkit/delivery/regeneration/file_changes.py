"""What becomes of a generated file: written, replaced, merged with its user's edits, kept, removed, or a conflict."""

from __future__ import annotations

import difflib
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mlflowkit.delivery.regeneration.export_lock import LockEntry, packed
from mlflowkit.delivery.regeneration.generated_header import digest_of, recorded_digest, split_header, with_header
from mlflowkit.errors import StoreError, UsageError

Action = Literal["new", "update", "unchanged", "merged", "conflict", "owned", "removed"]
Choice = Literal["theirs", "mine", ""]
"""What a user said of a file: the generated text, their own for good, or nothing."""


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """A generated text and what it is of."""

    path: str
    body: bytes
    header: str
    entry: LockEntry
    """Its entry in the lock, without the text."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """The decision on one file. ``content`` is what the file will be: None to remove it or where it stays as it is."""

    path: str
    target: str
    action: Action
    before: bytes | None
    content: bytes | None = None
    entry: LockEntry | None = None
    """Its entry in the new lock; None when it has none."""
    reason: str = ""
    generated: bytes = b""
    """The newly generated text, for the difference shown with a conflict."""
    kept: int = 0
    """Lines of the user's that stayed."""

    @property
    def writes(self) -> bool:
        """Whether the file itself is written or removed."""
        return self.action in ("new", "update", "merged", "removed")

    @property
    def is_removal(self) -> bool:
        """Whether the file is no longer generated."""
        return not self.generated

    def diff(self) -> str:
        """The change as a unified diff; of a conflict, from the user's text to the generated one; "" for none."""
        if not self.writes and self.action != "conflict":
            return ""
        after = self.generated if self.action == "conflict" else self.content or b""
        old = "" if self.before is None else self.before.decode(errors="replace")
        names = ("/dev/null" if self.before is None else f"a/{self.path}", f"b/{self.path}")
        lines = difflib.unified_diff(
            old.splitlines(), after.decode(errors="replace").splitlines(), *names, lineterm="", n=3
        )
        return "\n".join(lines)


def decide(rendered: RenderedFile, entry: LockEntry | None, current: bytes | None, choice: Choice) -> FileChange:
    """What becomes of a file that is generated. ``entry`` is its last one, ``current`` its content now."""
    fresh = replace(rendered.entry, header=rendered.header, body=digest_of(rendered.body), text=packed(rendered.body))
    new = with_header(rendered.body, rendered.header.encode())
    change = FileChange(rendered.path, fresh.target, "update", current, new, fresh, generated=new)
    if choice == "mine" or (entry is not None and entry.owned and choice != "theirs"):
        if current is None and choice == "mine":
            raise UsageError(f"--mine {rendered.path}: there is no such file", hint="mlkit export RECIPE writes it")
        owned = replace(rendered.entry, owned=True, header="", plan="", version=0)
        return replace(change, action="owned", content=None, entry=owned)
    if current is None:
        return replace(change, action="new")
    crlf = _has_crlf(current)
    change = replace(change, content=_to_crlf(new) if crlf else new)
    yours = split_header(_to_lf(current) if crlf else current, "" if entry is None else entry.header)
    if yours.body == rendered.body:  # the header stays: it names the plan that changed the text last
        same = entry is not None and (entry.body, entry.target, entry.version) == (
            fresh.body,
            fresh.target,
            fresh.version,
        )
        kept = entry if same else replace(fresh, header=yours.line.decode(errors="replace"))
        return replace(change, action="unchanged", content=None, entry=kept)
    if choice == "theirs":
        return change
    base = _base(entry, yours.line, yours.body)
    marker = _conflict_marker(current)
    if marker and not isinstance(base, str) and not _conflict_marker(base):
        base = f"line {marker} is a marker of a merge that was not resolved"
    if isinstance(base, str):
        return replace(change, action="conflict", content=None, entry=entry, reason=base)
    if yours.body == base:
        return change
    kept_lines = _edited_lines(base, yours.body)
    if rendered.body == base:
        return replace(change, action="unchanged", content=None, entry=entry or fresh, kept=kept_lines)
    merged = merge(yours.body, base, rendered.body)
    if merged is None:
        reason = "your edits and the new text change the same lines"
        return replace(change, action="conflict", content=None, entry=entry, reason=reason)
    content = with_header(merged, rendered.header.encode(), index=yours.index if yours.line else None)
    return replace(change, action="merged", content=_to_crlf(content) if crlf else content, kept=kept_lines)


def decide_removed(path: str, entry: LockEntry, current: bytes | None, choice: Choice) -> FileChange:
    """What becomes of a file that is no longer generated: removed unless it was edited."""
    change = FileChange(path, entry.target, "removed", current)
    if current is None or entry.owned or choice == "mine":
        return replace(change, action="owned" if current is not None else "unchanged")
    if choice == "theirs":
        return replace(change, reason="it is no longer generated, and your edits go with it")
    plain = _to_lf(current) if _has_crlf(current) else current
    yours = split_header(plain, entry.header)
    if digest_of(yours.body) == entry.body:
        return change
    reason = "it is no longer generated, and has edits of yours"
    return replace(change, action="conflict", entry=entry, reason=reason)


def merge(yours: bytes, base: bytes, new: bytes) -> bytes | None:
    """The 3-way merge of two changes of a text by ``git merge-file``; None when they conflict. Raises StoreError."""
    if any(b"\0" in text for text in (yours, base, new)):
        return None  # git does not merge binary files
    with tempfile.TemporaryDirectory(prefix="mlkit-merge-") as folder:
        files = []
        for name, text in (("yours", yours), ("base", base), ("new", new)):
            files.append(str(Path(folder, name)))
            Path(files[-1]).write_bytes(text)
        command = ["git", "merge-file", "-p", "--diff3", *files]
        try:
            process = subprocess.run(command, capture_output=True, timeout=60, check=False, cwd=folder)
        except FileNotFoundError as error:
            raise UsageError("git is not installed", hint="apt-get install git") from error
    if process.returncode > 127 or process.returncode < 0:
        raise StoreError(
            f"git merge-file failed: {process.stderr.decode(errors='replace').strip()}", hint="git --version"
        )
    return process.stdout if process.returncode == 0 else None


def _base(entry: LockEntry | None, line: bytes, body: bytes) -> bytes | str:
    """The text that a file was last generated as, or why it is not known."""
    if entry is None or not entry.text:
        if line and recorded_digest(line) == digest_of(body):
            return body
        return "it was edited, and the lock does not have what was generated" if line else "it was not generated"
    try:
        return entry.base()
    except ValueError as error:
        return str(error)


def _conflict_marker(body: bytes) -> int:
    """The line, from 1, of a first conflict marker of git that an end follows; 0 where there is none."""
    lines = body.splitlines()
    begins = [number for number, line in enumerate(lines, 1) if line.startswith(b"<<<<<<< ")]
    ends = any(line.startswith(b">>>>>>> ") for line in lines)
    return begins[0] if begins and ends else 0


def _edited_lines(base: bytes, yours: bytes) -> int:
    """Lines that differ between two texts: those added, and those removed."""
    matcher = difflib.SequenceMatcher(None, base.splitlines(), yours.splitlines(), autojunk=False)
    spans = [codes for codes in matcher.get_opcodes() if codes[0] != "equal"]
    return sum(max(high - low, top - bottom) for _, low, high, bottom, top in spans)


def _has_crlf(content: bytes) -> bool:
    """Whether every line of a text ends in CRLF. A text with both kinds is taken byte by byte."""
    return b"\r\n" in content and content.count(b"\r\n") == content.count(b"\n") == content.count(b"\r")


def _to_lf(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n")


def _to_crlf(content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


def changed(changes: Mapping[str, FileChange], before: Mapping[str, LockEntry], after: Mapping[str, LockEntry]) -> bool:
    """Whether carrying out the changes would write anything."""
    return any(change.writes for change in changes.values()) or dict(before) != dict(after)
