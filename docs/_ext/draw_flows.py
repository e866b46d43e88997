"""Draws the three flows of the architecture page as SVG: `python docs/_ext/draw_flows.py`."""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 168, 62, 34, 52, 16
Box = tuple[str, str]
"""Title and package of one box."""

FLOWS: dict[str, list[list[Box]]] = {
    "run": [
        [
            ("recipe", "recipe"),
            ("plan", "pipeline.plan"),
            ("data", "stages"),
            ("validate", "stages"),
            ("train", "stages"),
        ],
        [
            ("export", "stages"),
            ("optimize", "optimization"),
            ("evaluate", "judging"),
            ("package", "bundle"),
            ("deploy", "service_state"),
        ],
    ],
    "request": [
        [
            ("connection", "serving.http · grpc"),
            ("data plane", "serving.inference"),
            ("router", "serving.inference"),
            ("schema", "serving.protocol"),
            ("session", "adapters"),
        ],
        [
            ("response", "serving.protocol"),
            ("counters", "serving.inference"),
            ("shadow queue", "serving.inference"),
            ("observer", "serving.observer"),
            ("prediction log, profiles", "serving.observer"),
        ],
    ],
    "verdict": [
        [
            ("evidence", "service_state"),
            ("judge", "judging.online"),
            ("policy", "rollout.policy"),
            ("save state", "rollout.state"),
            ("carry out", "rollout.controller"),
        ],
        [
            ("routing table", "service_state"),
            ("gateways", "serving.inference"),
            ("counts by epoch", "serving"),
            ("feedback joined", "serving.feedback"),
            ("evidence again", "service_state"),
        ],
    ],
}
"""Each flow is read row by row, left to right."""


def draw(rows: list[list[Box]]) -> str:
    """One flow as an SVG document: rows of boxes, an arrow from each to the next."""
    columns = max(map(len, rows))
    width = 2 * MARGIN + columns * WIDTH + (columns - 1) * GAP_X
    height = 2 * MARGIN + len(rows) * HEIGHT + (len(rows) - 1) * GAP_Y
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="system-ui, sans-serif">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#5b6b7b"/></marker></defs>',
    ]
    for row, boxes in enumerate(rows):
        for column, (title, package) in enumerate(boxes):
            x, y = MARGIN + column * (WIDTH + GAP_X), MARGIN + row * (HEIGHT + GAP_Y)
            center = x + WIDTH / 2
            parts.append(
                f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#eef4fb" stroke="#5b8ab8"/>'
                f'<text x="{center}" y="{y + 27}" text-anchor="middle" font-size="14" fill="#14202b">'
                f"{escape(title)}</text>"
                f'<text x="{center}" y="{y + 46}" text-anchor="middle" font-size="11" fill="#4a5a69">'
                f"{escape(package)}</text>"
            )
            if column + 1 < len(boxes):
                middle = y + HEIGHT / 2
                parts.append(_arrow(f"M{x + WIDTH} {middle} H{x + WIDTH + GAP_X - 2}"))
            elif row + 1 < len(rows):
                down = y + HEIGHT + GAP_Y / 2
                parts.append(
                    _arrow(f"M{x + WIDTH / 2} {y + HEIGHT} V{down} H{MARGIN + WIDTH / 2} V{y + HEIGHT + GAP_Y - 2}")
                )
    return "\n".join([*parts, "</svg>", ""])


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="#5b6b7b" stroke-width="1.5" marker-end="url(#a)"/>'


if __name__ == "__main__":
    for name, rows in FLOWS.items():
        (Path(__file__).parents[1] / "_static" / f"flow_{name}.svg").write_text(draw(rows), encoding="utf-8")
