"""GET /docs: a page of the OpenAPI document that loads nothing, and whose command works."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from html import unescape

import httpx

from mlflowkit.bundle import Bundle
from mlflowkit.serving.http.docs_page import docs_page, example
from tests.support.gateways import InProcess


def test_the_page_shows_every_operation_and_loads_nothing(served: InProcess) -> None:
    reply = served.client.get("/docs")
    assert reply.status_code == 200
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    style = re.search(r"<style>(.*?)</style>", reply.text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    for banned in ("<script", "<link", "src=", "href=", "@import", "url("):
        assert banned not in reply.text
    document = served.client.get("/openapi.json").json()
    for path, item in document["paths"].items():
        for method in item.keys() & {"get", "post"}:
            assert f"<b>{method.upper()}</b> <code>{path}</code>" in reply.text


def test_the_command_of_the_page_is_answered(served: InProcess, first: Bundle) -> None:
    text = unescape(served.client.get("/docs").text)
    command = text[text.index("curl ") : text.index("</code></pre>")]
    words = shlex.split(command)
    assert words[1].endswith("/predict")
    body, header = words[words.index("-d") + 1], words[words.index("-H") + 1].split(": ")
    reply = httpx.post(f"{served.url}/predict", content=body, headers=dict([header]))
    assert reply.status_code == 200, reply.text
    infer = example(served.client.get("/openapi.json").json(), {"$ref": "#/components/schemas/InferRequest"})
    assert served.client.post("/v2/models/lending/infer", json=infer).status_code == 200


def test_names_of_a_signature_are_text_on_the_page(served: InProcess) -> None:
    document = served.client.get("/openapi.json").json()
    evil = "</code><img src=x onerror=alert(1)>'"
    text = json.dumps(document).replace("income", json.dumps(evil)[1:-1])
    page = docs_page(json.loads(text), "http://127.0.0.1:8080").decode()
    assert "<img" not in page
    assert "&lt;img src=x" in page
