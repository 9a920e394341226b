import base64
import hashlib
import hmac
import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as StandardWebhook
from standardwebhooks import WebhookVerificationError

from cluster.clock import utc_now
from cluster.errors import Invalid
from cluster.webhooks import signing
from cluster.webhooks.model import Delivery
from cluster.webhooks.service import new_secret

TEXT = "webhook_secret_key_for_hmac_verification"
WHSEC = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NOW = utc_now()


def delivery(**fields) -> Delivery:
    made = {
        "delivery_id": "dlv_1_2-0", "webhook_id": "wh_1", "event": "task.completed", "event_id": "evt_2-0",
        "created_at": NOW, "data": {"task_id": "task_1", "result_data": {"model_accuracy": 0.94, "name": "Zoë"}},
    }  # fmt: skip
    return Delivery(**made | fields)


# The sample of the AINS document, word for word.
def verify_webhook_signature(payload, signature, secret):
    """Verify HMAC-SHA256 signature for webhook authenticity."""
    expected_signature = hmac.new(secret.encode("utf-8"), payload.encode("utf-8"), hashlib.sha256).hexdigest()

    return hmac.compare_digest(signature, expected_signature)


@pytest.mark.parametrize("secret", [TEXT, WHSEC])
def test_the_documents_own_sample_accepts_the_header_and_the_inner_signature(secret):
    content = signing.body(delivery(), secret)
    sent = signing.headers(delivery(), content, [secret], NOW)
    scheme, _, signature = sent["X-AINS-Signature"].partition("=")
    assert scheme == "sha256" and verify_webhook_signature(content.decode(), signature, secret)
    assert not verify_webhook_signature(content.decode() + " ", signature, secret)
    assert not verify_webhook_signature(content.decode(), signature, secret + "x")
    payload = json.loads(content)
    inner = payload.pop("signature")
    assert verify_webhook_signature(rfc8785.dumps(payload).decode(), inner, secret)
    # Without an RFC 8785 library: sorted keys and no blanks are the same for all but unusual numbers.
    plain = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert verify_webhook_signature(plain, inner, secret)


def test_the_payload_has_the_documented_fields():
    payload = json.loads(signing.body(delivery(attempt_count=2), TEXT))
    assert payload.keys() == {
        "event", "event_id", "webhook_id", "timestamp", "data", "signature", "delivery_attempt"
    }  # fmt: skip
    assert payload["delivery_attempt"] == 3 and payload["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    ("secret", "theirs"),
    [
        (WHSEC, StandardWebhook(WHSEC)), (TEXT, StandardWebhook(TEXT.encode())),
        (TEXT, StandardWebhook("whsec_" + base64.b64encode(TEXT.encode()).decode())),
    ],
)  # fmt: skip
def test_the_standard_library_accepts_every_kind_of_secret(secret, theirs):
    content = signing.body(delivery(), secret)
    sent = signing.headers(delivery(), content, [secret], NOW)
    assert theirs.verify(content, sent)["event"] == "task.completed"
    with pytest.raises(WebhookVerificationError):
        theirs.verify(content.replace(b"task_1", b"task_2"), sent)
    with pytest.raises(WebhookVerificationError):
        theirs.verify(content, sent | {"webhook-id": "dlv_1_3-0"})


def test_while_a_secret_is_rotated_both_are_accepted():
    content = signing.body(delivery(), "a new secret")
    sent = signing.headers(delivery(), content, ["a new secret", "an old secret"], NOW)
    for secret in ("a new secret", "an old secret"):
        StandardWebhook(secret.encode()).verify(content, sent)
    with pytest.raises(WebhookVerificationError):
        StandardWebhook(b"another secret").verify(content, sent)
    assert verify_webhook_signature(content.decode(), sent["X-AINS-Signature"][7:], "a new secret")
    assert verify_webhook_signature(content.decode(), sent["X-AINS-Signature-Previous"][7:], "an old secret")


@pytest.mark.parametrize(
    "secret",
    [
        "", "short", "x" * 257, "with a\nline", "with a\x00 null", "ünïcödë secret", "whsec_", "whsec_!!!!!!!!!!!!!!!!",
        "whsec_" + base64.b64encode(b"x" * 15).decode(), "whsec_" + base64.b64encode(b"x" * 97).decode(),
    ],
)  # fmt: skip
def test_a_secret_that_cannot_sign_well_is_refused(secret):
    with pytest.raises(Invalid) as refusal:
        signing.check_secret(secret)
    assert refusal.value.details["field"] == "secret"


@pytest.mark.parametrize(
    "secret", [TEXT, WHSEC, "webhook-secret", new_secret()], ids=["text", "whsec", "the document", "ours"]
)
def test_the_documents_secrets_and_our_own_are_taken(secret):
    signing.check_secret(secret)


def test_two_made_secrets_differ():
    assert new_secret() != new_secret()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_whatever_json_an_event_holds_can_be_signed_and_checked(value):
    content = signing.body(delivery(data={"value": value}), TEXT)
    # A double beyond 2**53 has no point in canonical JSON, and RFC 8785 knows doubles only.
    payload = json.loads(content, parse_int=lambda n: int(n) if abs(int(n)) < 2**53 else float(n))
    inner = payload.pop("signature")
    assert inner == signing.hexdigest(TEXT, rfc8785.dumps(payload))


def test_an_integer_beyond_what_json_carries_is_sent_as_a_string():
    data = {"big": 2**53, "edge": 2**53 - 1, "yes": True, "nested": [{"low": -(2**60)}]}
    payload = json.loads(signing.body(delivery(data=data), TEXT))
    assert payload["data"] == {
        "big": "9007199254740992", "edge": 2**53 - 1, "yes": True, "nested": [{"low": str(-(2**60))}]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "span", "sent"),
    [
        ("", "", None), ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),
        ("x\r\nX-Evil: 1", "", None),
        ("", "00-" + "c" * 32 + "-" + "d" * 16 + "-01", "00-" + "c" * 32 + "-" + "d" * 16 + "-01"),
    ],
)  # fmt: skip
def test_the_trace_goes_along_if_it_is_one(kept, span, sent):
    found = signing.headers(delivery(traceparent=kept), b"{}", [TEXT], NOW, span)
    assert found.get("traceparent") == sent
