"""Webhook signatures: the published test vector of Standard Webhooks, rotation, replay, the deprecated header."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from mlflowkit.rollout.webhooks import legacy_signature, sign, verify

KEY = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'
ID, TIMESTAMP = "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330"
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def headers(**changes: str) -> dict[str, str]:
    return {"webhook-id": ID, "webhook-timestamp": TIMESTAMP, "webhook-signature": SIGNATURE, **changes}


def test_the_vector_of_the_specification() -> None:
    assert sign(KEY, BODY, id=ID, timestamp=TIMESTAMP) == SIGNATURE
    assert verify(KEY, BODY, headers(), now=1_614_265_400.0)


def test_a_key_that_is_plain_text_is_the_secret_itself() -> None:
    expected = hmac.new(b"a-secret-key", f"{ID}.{TIMESTAMP}.".encode() + BODY, hashlib.sha256).digest()
    assert sign(b"a-secret-key", BODY, id=ID, timestamp=TIMESTAMP) == f"v1,{base64.b64encode(expected).decode()}"
    assert sign(b"whsec_" + base64.b64encode(b"k"), b"{}", id="1", timestamp="2") == sign(
        b"k", b"{}", id="1", timestamp="2"
    )
    with pytest.raises(ValueError, match=r"base64|padding"):
        sign(b"whsec_not base64!", BODY, id=ID, timestamp=TIMESTAMP)


@pytest.mark.parametrize(
    "changes",
    [
        {"webhook-id": "another"},
        {"webhook-timestamp": "1614265331"},
        {"webhook-timestamp": "soon"},
        {"webhook-signature": "v1,AAAA"},
        {"webhook-signature": ""},
    ],
)
def test_a_changed_header_is_rejected(changes: dict[str, str]) -> None:
    assert not verify(KEY, BODY, {**headers(), **changes}, now=1_614_265_400.0)


def test_a_changed_body_a_late_delivery_and_missing_headers_are_rejected() -> None:
    assert not verify(KEY, BODY + b" ", headers(), now=1_614_265_400.0)
    assert not verify(KEY, BODY, headers(), now=1_614_265_330.0 + 301)
    assert not verify(KEY, BODY, {}, now=1_614_265_400.0)


def test_any_of_several_signatures_is_enough_while_a_key_is_rotated() -> None:
    assert verify(KEY, BODY, headers(**{"webhook-signature": f"v1,AAAA {SIGNATURE}"}), now=1_614_265_400.0)


def test_the_deprecated_signature_is_what_it_was() -> None:
    expected = hmac.new(b"k", b"7.{}", hashlib.sha256).hexdigest()
    assert legacy_signature(b"k", b"{}", "7") == f"v1={expected}"
