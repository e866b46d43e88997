"""mlkit key: make, list and revoke API keys in a file of hashes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlflowkit.cli.app import JsonOption, app, echo, emit_json, note
from mlflowkit.errors import UsageError, nearest

if TYPE_CHECKING:
    from mlflowkit.serving.auth import Key

KeysOption = Annotated[
    Path,
    typer.Option(
        "--keys", envvar="MLKIT_KEYS", metavar="FILE", help="The file that serve.auth.keys names [default: keys.json]."
    ),
]
_FILE = Path("keys.json")
_commands = typer.Typer(
    name="key",
    help="Make, list and revoke API keys. A running service follows the file.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(_commands)


@_commands.command()
def create(
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="SCOPE", help="infer, feedback or admin; repeat for several [default: infer]."),
    ] = None,
    note_: Annotated[str, typer.Option("--note", metavar="TEXT", help="Whose it is, or what for.")] = "",
    keys: KeysOption = _FILE,
    json: JsonOption = False,
) -> int:
    """Make a key. Its token is printed once and kept nowhere."""
    from mlflowkit.serving import auth

    made, token = auth.make(scope or ["infer"], note_)
    with auth.changing(keys) as present:
        present.append(made)
    if json:
        emit_json({"token": token, "keys": str(keys), **_row(made)})
    else:
        note(f"key {made.id} ({', '.join(made.scopes)}) is in {keys}; this is its token, shown this once:")
        echo(token)
    return 0


@_commands.command("list")
def list_(keys: KeysOption = _FILE, json: JsonOption = False) -> int:
    """Show the keys of a file, without what would let anybody in."""
    import datetime

    from mlflowkit.serving import auth

    rows = [_row(key) for key in auth.read(keys)]
    if json:
        emit_json({"keys": rows})
    for row in rows if not json else ():
        made = datetime.datetime.fromtimestamp(row["created"]).astimezone().strftime("%Y-%m-%d %H:%M")
        echo(f"{row['id']}  {made}  {','.join(row['scopes'])}  {row['note']}".rstrip())
    if not rows and not json:
        echo(f"no keys in {keys}; `mlkit key create` makes one")
    return 0


@_commands.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `mlkit key list` shows it.")],
    keys: KeysOption = _FILE,
    json: JsonOption = False,
) -> int:
    """Take a key away: running services refuse it within a second."""
    from mlflowkit.serving import auth

    auth.read(keys)
    with auth.changing(keys) as present:
        found = next((one for one in present if one.id == key), None)
        if found is None:
            known = [one.id for one in present]
            close = nearest(key, known)
            raise UsageError(
                f"no key {key!r} in {keys}; there is {', '.join(known) or 'none'}",
                hint=f"mlkit key revoke {close}" if close else f"mlkit key list --keys {keys}",
            )
        present.remove(found)
    if json:
        emit_json({"revoked": _row(found)})
    else:
        echo(f"revoked {key}")
    return 0


def _row(key: Key) -> dict[str, Any]:
    return {"id": key.id, "scopes": list(key.scopes), "created": key.created, "note": key.note}
