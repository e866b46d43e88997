"""mlkit key: create, list and revoke API keys in a file of hashes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlflowkit.cli.app import JsonOption, app, echo, emit_json, note, print_result
from mlflowkit.errors import UsageError, closest_match
from mlflowkit.system.text import shell_word

if TYPE_CHECKING:
    from mlflowkit.serving.auth import Key

KeysOption = Annotated[
    Path,
    typer.Option(envvar="MLKIT_KEYS", metavar="FILE", help="The key file of serve.auth.keys [default: keys.json]."),
]
_FILE = Path("keys.json")
_commands = typer.Typer(
    name="key",
    help="Create, list and revoke API keys. A running service follows the file.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(_commands)


@_commands.command()
def create(
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE", help="infer, feedback, admin or metrics; repeat for several [default: infer]."),
    ] = None,
    note_: Annotated[str, typer.Option("--note", metavar="TEXT", help="Owner or purpose.")] = "",
    keys: KeysOption = _FILE,
    json: JsonOption = False,
) -> None:
    """Create a key. Its token is printed once and not stored."""
    from mlflowkit.serving import auth

    created, token = auth.make_key(scope or ["infer"], note_)
    with auth.edit_keys(keys) as present:
        present.append(created)
    if json:
        emit_json({"token": token, "keys": str(keys), **_row(created)})
    else:
        note(f"key {created.id} ({', '.join(created.scopes)}) is in {keys}; its token is shown only once:")
        echo(token)


@_commands.command("list")
def list_(keys: KeysOption = _FILE, json: JsonOption = False) -> None:
    """Show the keys of a file, without secrets."""
    import datetime

    from mlflowkit.serving import auth

    rows = [_row(key) for key in auth.read_keys(keys)]
    if json:
        emit_json({"keys": rows})
        return
    for row in rows:
        created = datetime.datetime.fromtimestamp(row["created"]).astimezone().strftime("%Y-%m-%d %H:%M")
        echo(f"{row['id']}  {created}  {','.join(row['scopes'])}  {row['note']}".rstrip())
    if not rows:
        echo(f"no keys in {keys}; `mlkit key create` makes one")


@_commands.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `mlkit key list` shows it.")],
    keys: KeysOption = _FILE,
    json: JsonOption = False,
) -> None:
    """Revoke a key: running services refuse it within a second."""
    from mlflowkit.serving import auth

    auth.read_keys(keys)
    with auth.edit_keys(keys) as present:
        revoked = next((entry for entry in present if entry.id == key), None)
        if revoked is None:
            ids = [entry.id for entry in present]
            close = closest_match(key, ids)
            raise UsageError(
                f"no key {key!r} in {keys}; there is {', '.join(ids) or 'none'}",
                hint=f"mlkit key revoke {close}" if close else f"mlkit key list --keys {shell_word(keys)}",
            )
        present.remove(revoked)
    print_result({"revoked": _row(revoked)}, f"revoked {key}", json)


def _row(key: Key) -> dict[str, Any]:
    return {"id": key.id, "scopes": list(key.scopes), "created": key.created, "note": key.note}
