"""Tokens: what is signed, what is accepted, and everything that must be refused."""

import base64
import collections
import hashlib
import hmac
import itertools
import json
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import wsgi_auth
from wsgi_auth import (
    MAX_TOKEN_BYTES,
    DecodeError,
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAlgorithmError,
    InvalidAudienceError,
    InvalidClaimError,
    InvalidIssuerError,
    InvalidKeyError,
    InvalidSignatureError,
    InvalidTokenError,
    MissingRequiredClaimError,
    TokenSigner,
    decode,
    encode,
    parse_json_object,
)


@pytest.fixture(autouse=True)
def clean_environment():
    """Nothing here reads the environment or a folder."""


KEY = b"alpha-3c59dc048e8850243be8079a5c74d079"
OTHER_KEY = b"bravo-b6d767d2f8ed5d21a44b0e5886680cb9"
NOW = 1_700_000_000
HEADER = b'{"alg":"HS256","typ":"JWT"}'
PAYLOAD = b'{"sub":"alice"}'
CANARY = "canary-5e1f0b7c-in-the-claims"


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def sealed(header, payload, key=KEY):
    """A token of two segments as they stand and their correct signature."""
    signing_input = header + b"." + payload
    return signing_input + b"." + b64(hmac.digest(key, signing_input, "sha256"))


def signed(payload=PAYLOAD, header=HEADER, key=KEY):
    """A correctly signed token of any bytes whatever."""
    return sealed(b64(header), b64(payload), key)


def signed_with(**header):
    return signed(header=json.dumps(header).encode())


def refusal(token, **policy):
    with pytest.raises(InvalidTokenError) as caught:
        decode(token, KEY, **{"now": NOW, **policy})
    return caught.value


def shares_text(message, secret):
    """Tell whether eight characters in a row of `secret` are in the message."""
    return any(secret[i:i + 8] in message for i in range(len(secret) - 7))


def signer_at(now, **policy):
    return TokenSigner(KEY, clock=lambda: now, **policy)


# --- Published vectors --------------------------------------------------------------------------

# RFC 7515 Appendix A.1, which is also the example of RFC 7519 §3.1.
RFC_HEADER = b'{"typ":"JWT",\r\n "alg":"HS256"}'
RFC_PAYLOAD = b'{"iss":"joe",\r\n "exp":1300819380,\r\n "http://example.com/is_root":true}'
RFC_K = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"
RFC_KEY = base64.urlsafe_b64decode(RFC_K + "==")
RFC_TOKEN = (
    "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9"
    "."
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
    "."
    "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
)


def test_helper_of_rfc7515_example_makes_the_published_text():
    token = signed(RFC_PAYLOAD, RFC_HEADER, RFC_KEY)

    assert token == RFC_TOKEN.encode()  # so the hostile tokens below are signed as the RFC says


@pytest.mark.parametrize("token", [RFC_TOKEN, RFC_TOKEN.encode()], ids=["str", "bytes"])
def test_decode_of_rfc7515_example_returns_its_claims(token):
    claims = decode(token, RFC_KEY, issuer="joe", now=1300819379)

    assert claims == {"iss": "joe", "exp": 1300819380, "http://example.com/is_root": True}


def test_decode_of_rfc7515_example_at_its_expiry_is_refused():
    with pytest.raises(ExpiredSignatureError):
        decode(RFC_TOKEN, RFC_KEY, now=1300819380)


def test_encode_of_claims_makes_the_text_of_rfc7515():
    token = encode({"sub": "alice"}, KEY)

    assert type(token) is str
    assert token.encode() == signed(b'{"sub":"alice"}', b'{"alg":"HS256","typ":"JWT"}')


# --- Round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("claims", [
    pytest.param({}, id="empty"),
    pytest.param({"sub": "Zoë ☃ \U0001f600"}, id="unicode"),
    pytest.param({"sub": 'a"b\\c\n\t\x00:{}[],'}, id="characters_of_json"),
    pytest.param({"iss": "https://issuer.example:8443/realm?x=1", "sub": "a"}, id="url_issuer"),
    pytest.param({"act": {"sub": "bob", "act": {"sub": "carol"}}, "sub": "a"}, id="nested"),
    pytest.param({"roles": [{"name": "a"}, {"name": "b"}, {}]}, id="list_of_objects"),
    pytest.param({"exp": NOW + 0.5, "nbf": NOW, "iat": -1.5, "n": 2**70}, id="numbers"),
    pytest.param({"a": None, "b": True, "c": False, "d": [], "": ""}, id="constants"),
])
def test_decode_of_encoded_claims_returns_them(claims):
    token = encode(claims, KEY)

    decoded = decode(token, KEY, now=NOW)

    assert decoded == claims


@pytest.mark.parametrize("size", [32, 33, 63, 64, 65, 128, 1000])
def test_encode_with_key_of_any_length_signs_by_rfc2104(size):
    key = bytes(i % 251 for i in range(size))  # hashed first where it is over a block of 64

    token = encode({"sub": "alice"}, key)

    assert token.encode() == signed(key=key)
    assert decode(token, key) == {"sub": "alice"}


def test_decode_with_text_key_reads_what_its_bytes_signed():
    key = "ключ" * 4

    token = encode({"sub": "alice"}, key.encode())

    assert decode(token, key) == {"sub": "alice"}


def test_encode_with_further_headers_writes_them():
    token = encode({"sub": "alice"}, KEY, headers={"typ": "at+jwt", "kid": "2026"})

    header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    assert header == {"alg": "HS256", "typ": "at+jwt", "kid": "2026"}
    assert decode(token, KEY) == {"sub": "alice"}


@pytest.mark.parametrize("headers, error", [
    ({"alg": "none"}, InvalidAlgorithmError),
    ({"alg": None}, InvalidAlgorithmError),
    ({"crit": ["exp"]}, DecodeError),
    ({"b64": False}, DecodeError),
    ({"typ": "JWE"}, DecodeError),
    ({"typ": None}, DecodeError),
], ids=["alg_none", "alg_null", "crit", "b64", "typ_jwe", "typ_null"])
def test_encode_with_headers_that_decode_refuses_raises(headers, error):
    with pytest.raises(InvalidTokenError) as caught:
        encode({"sub": "alice"}, KEY, headers=headers)

    assert type(caught.value) is error


@pytest.mark.parametrize("claims, error", [
    (None, TypeError),
    ([("sub", "alice")], TypeError),
    ("sub", TypeError),
    ({"sub": b"alice"}, TypeError),
    ({"sub": {"alice"}}, TypeError),
    ({"exp": float("nan")}, ValueError),
    ({"exp": float("inf")}, ValueError),
    ({"sub": "\ud800"}, ValueError),
], ids=["none", "pairs", "text", "bytes", "set", "nan", "infinity", "lone_surrogate"])
@pytest.mark.parametrize("sign", [
    pytest.param(lambda claims: encode(claims, KEY), id="encode"),
    pytest.param(lambda claims: TokenSigner(KEY).sign(claims), id="sign"),
])
def test_claims_that_json_cannot_express_raise(sign, claims, error):
    with pytest.raises(error):
        sign(claims)


def test_decode_of_pyjwt_token_returns_its_claims():
    jwt = pytest.importorskip("jwt")
    claims = {"sub": "alice", "iss": "https://issuer.example", "exp": NOW}

    token = jwt.encode(claims, KEY, algorithm="HS256", headers={"kid": "1"})

    assert decode(token, KEY, now=NOW - 1) == claims


def test_encode_for_pyjwt_is_read_by_it():
    jwt = pytest.importorskip("jwt")
    claims = {"sub": "alice", "aud": ["a", "b"], "name": "Zoë"}

    token = encode(claims, KEY)

    assert jwt.decode(token, KEY, algorithms=["HS256"], audience="b") == claims


def test_encode_for_joserfc_is_read_by_it():
    joserfc_jwt = pytest.importorskip("joserfc.jwt")
    joserfc_jwk = pytest.importorskip("joserfc.jwk")

    token = encode({"sub": "alice"}, KEY)

    decoded = joserfc_jwt.decode(token, joserfc_jwk.OctKey.import_key(KEY), algorithms=["HS256"])
    assert decoded.claims == {"sub": "alice"}
    theirs = joserfc_jwt.encode(
        {"alg": "HS256"}, {"sub": "alice"}, joserfc_jwk.OctKey.import_key(KEY))
    assert decode(theirs, KEY) == {"sub": "alice"}


def test_tokens_and_those_of_npm_are_read_by_each_other():
    """jsonwebtoken and jose, in Node."""
    node, folder = shutil.which("node"), Path(__file__).parent / "benchmarks" / "node"
    if not node or not (folder / "node_modules" / "jose").exists():
        pytest.skip("there is no Node, or npm ci has not been run")
    signer = TokenSigner(KEY, issuer="https://issuer.example")
    token = signer.sign({"sub": "Zoë 山田", "scope": "read", "n": [1.5, None, {"a": True}]})

    result = subprocess.run(
        [node, "interop.mjs"], cwd=folder, input=json.dumps({"key": KEY.decode(), "token": token}),
        capture_output=True, check=True, encoding="utf-8", timeout=30)
    told = json.loads(result.stdout)

    claims = signer.verify(token)
    assert told["read"] == {"jose": claims, "jsonwebtoken": claims}
    assert {name: signer.verify(made) for name, made in told["made"].items()} == told["read"]


# --- Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error, bases", [
    (InvalidTokenError, (Exception,)),
    (DecodeError, (InvalidTokenError,)),
    (InvalidSignatureError, (DecodeError,)),  # as in PyJWT
    (InvalidAlgorithmError, (InvalidTokenError,)),
    (ExpiredSignatureError, (InvalidTokenError,)),
    (ImmatureSignatureError, (InvalidTokenError,)),
    (InvalidClaimError, (InvalidTokenError,)),
    (InvalidAudienceError, (InvalidClaimError,)),
    (InvalidIssuerError, (InvalidClaimError,)),
    (MissingRequiredClaimError, (InvalidTokenError,)),
    (InvalidKeyError, (ValueError,)),
])
def test_error_class_has_its_place_under_the_root(error, bases):
    name = error.__name__

    assert error.__bases__ == bases
    assert getattr(wsgi_auth, name) is error
    assert name in wsgi_auth.__all__


@pytest.mark.parametrize("name", [
    "DecodeError", "ExpiredSignatureError", "ImmatureSignatureError", "InvalidAlgorithmError",
    "InvalidAudienceError", "InvalidIssuerError", "InvalidSignatureError", "InvalidTokenError",
    "MissingRequiredClaimError",
])
def test_error_name_is_one_of_pyjwt(name):
    jwt = pytest.importorskip("jwt")

    assert issubclass(getattr(jwt, name), jwt.InvalidTokenError)
    assert issubclass(getattr(wsgi_auth, name), InvalidTokenError)


def test_missing_claim_error_names_the_claim():
    error = refusal(signed(), require=["sub", "exp"])

    assert type(error) is MissingRequiredClaimError
    assert error.claim == "exp"
    assert "exp" in str(error)


@pytest.mark.parametrize("error", [
    MissingRequiredClaimError("exp"), DecodeError("Invalid JSON"), InvalidKeyError("Not a key"),
], ids=["missing", "decode", "key"])
def test_error_sent_to_another_process_keeps_its_message(error):
    copied = pickle.loads(pickle.dumps(error))

    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)


# --- Keys ---------------------------------------------------------------------------------------

PEM_BODY = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9"
SSH_BODY = "AAAAC3NzaC1lZDI1NTE5AAAAIGxlYWtlZC1rZXktbWF0ZXJpYWwtaW4tdGVzdHM"


def pem(label):
    return f"-----BEGIN {label}-----\n{PEM_BODY}\n-----END {label}-----\n"


BAD_KEYS = [
    pytest.param("", id="empty_text"),
    pytest.param(b"", id="empty_bytes"),
    pytest.param("hunter2-hunter2", id="short_text"),
    pytest.param(b"0123456789abcdef0123456789abcde", id="31_bytes"),
    pytest.param("☃" * 10 + "x", id="31_bytes_of_utf8"),
    pytest.param(["hunter2-hunter2"], id="short_in_list"),
    pytest.param([KEY, "hunter2-hunter2"], id="second_is_short"),
    pytest.param([], id="empty_list"),
    pytest.param((), id="empty_tuple"),
    pytest.param([[KEY]], id="list_in_list"),
    pytest.param([KEY, None], id="second_is_none"),
    pytest.param(None, id="none"),
    pytest.param(12345678901234567890123456789012, id="int"),
    pytest.param(True, id="bool"),
    pytest.param(bytearray(KEY), id="bytearray"),
    pytest.param({"kty": "oct", "k": RFC_K}, id="jwk_dict"),
    pytest.param({KEY.decode()}, id="set"),
    pytest.param(object(), id="object"),
    pytest.param("sekrit-" * 8 + "\ud800", id="lone_surrogate"),
    pytest.param(pem("PUBLIC KEY"), id="pem_public"),
    pytest.param(pem("PRIVATE KEY").encode(), id="pem_private_bytes"),
    pytest.param(pem("RSA PRIVATE KEY"), id="pem_rsa"),
    pytest.param(pem("EC PRIVATE KEY"), id="pem_ec"),
    pytest.param(pem("CERTIFICATE"), id="pem_certificate"),
    pytest.param(pem("OPENSSH PRIVATE KEY"), id="pem_openssh"),
    pytest.param("\n # the key\n" + pem("PUBLIC KEY"), id="pem_after_comment"),
    pytest.param([KEY, pem("PUBLIC KEY")], id="second_is_pem"),
    pytest.param(f"---- BEGIN SSH2 PUBLIC KEY ----\n{SSH_BODY}\n", id="ssh2"),
    pytest.param(f"PuTTY-User-Key-File-3: ssh-ed25519\n{SSH_BODY}\n", id="putty"),
    pytest.param(f"ssh-rsa {SSH_BODY} alice@example", id="ssh_rsa"),
    pytest.param(f"ssh-dss {SSH_BODY}".encode(), id="ssh_dss"),
    pytest.param(f"ssh-ed25519 {SSH_BODY} alice@example", id="ssh_ed25519"),
    pytest.param(f"ecdsa-sha2-nistp256 {SSH_BODY}", id="ssh_ecdsa"),
    pytest.param(f"sk-ssh-ed25519@openssh.com {SSH_BODY}", id="ssh_sk"),
    pytest.param(f"sk-ecdsa-sha2-nistp256@openssh.com {SSH_BODY}", id="ssh_sk_ecdsa"),
    pytest.param(f'from="10.0.0.0/8" ssh-ed25519 {SSH_BODY}', id="ssh_authorized_keys_options"),
    pytest.param(f"ssh-xmss@openssh.com {SSH_BODY}", id="ssh_xmss"),
    pytest.param(f"-----BEGIN\tPUBLIC KEY-----\n{SSH_BODY}\n", id="pem_with_tab"),
    pytest.param(f"-----BEGIN PUBLIC KEY-----\n{SSH_BODY}\n".encode("utf-16"), id="pem_utf16"),
    pytest.param(json.dumps([{"kty": "oct", "k": RFC_K}]), id="jwk_array"),
    pytest.param(json.dumps({"kty": "oct", "k": RFC_K}), id="jwk"),
    pytest.param(json.dumps({"kty": "oct", "k": RFC_K}).encode(), id="jwk_bytes"),
    pytest.param("\n" + json.dumps({"keys": [{"kty": "oct", "k": RFC_K}]}, indent=2) + "\n",
                 id="jwk_set"),
]
USES_OF_A_KEY = [
    pytest.param(lambda key: encode({}, key), id="encode"),
    pytest.param(lambda key: decode(signed(), key), id="decode"),
    pytest.param(TokenSigner, id="signer"),
]


@pytest.mark.parametrize("use", USES_OF_A_KEY)
@pytest.mark.parametrize("key", BAD_KEYS)
def test_key_that_is_unfit_is_refused_with_advice(use, key):
    with pytest.raises(InvalidKeyError) as caught:
        use(key)

    assert "secrets.token_hex(32)" in str(caught.value)
    assert "32" in str(caught.value)


@pytest.mark.parametrize("key", BAD_KEYS)
def test_key_refusal_holds_no_part_of_the_key(key):
    with pytest.raises(InvalidKeyError) as caught:
        TokenSigner(key)

    for part in key if isinstance(key, (list, tuple, set)) else [key]:
        text = part.decode("latin-1") if isinstance(part, (bytes, bytearray)) else str(part)
        assert not shares_text(str(caught.value), text)


def test_key_refusal_of_short_key_tells_its_length():
    with pytest.raises(InvalidKeyError, match="31 bytes"):
        TokenSigner("☃" * 10 + "x")


@pytest.mark.parametrize("key", [
    pytest.param("k" * 32, id="32_bytes"),
    pytest.param("é" * 16, id="32_bytes_of_utf8"),
    pytest.param(bytes(32), id="bytes_of_zero"),
    pytest.param(b"\xff\xfe" * 16, id="bytes_not_utf8"),
    pytest.param("12345678901234567890123456789012", id="json_number"),
    pytest.param("[" * 100_000, id="deeply_nested"),
    pytest.param([KEY], id="list"),
    pytest.param((KEY, OTHER_KEY), id="tuple"),
    pytest.param(collections.deque([KEY, OTHER_KEY]), id="another_sequence"),
])
def test_key_that_is_fit_signs_and_verifies(key):
    signer = TokenSigner(key)

    claims = signer.verify(signer.sign({"sub": "alice"}))

    assert claims["sub"] == "alice"


def test_decode_of_token_with_bad_key_blames_the_key():
    with pytest.raises(InvalidKeyError):  # whatever the token: the key is the operator's fault
        decode("junk", "short")


# --- Several keys -------------------------------------------------------------------------------


def test_signer_with_several_keys_signs_with_the_first():
    token = TokenSigner([KEY, OTHER_KEY]).sign({"sub": "alice"})

    assert decode(token, KEY)["sub"] == "alice"
    with pytest.raises(InvalidSignatureError):
        decode(token, OTHER_KEY)


def test_encode_with_several_keys_signs_with_the_first():
    token = encode({"sub": "alice"}, [KEY, OTHER_KEY])

    assert decode(token, KEY) == {"sub": "alice"}


@pytest.mark.parametrize("key", [KEY, OTHER_KEY], ids=["first", "second"])
def test_signer_with_several_keys_verifies_what_any_signed(key):
    token = signed(b'{"sub":"alice","exp":1700000001}', key=key)

    claims = TokenSigner([KEY, OTHER_KEY], clock=lambda: NOW).verify(token)

    assert claims["sub"] == "alice"


@pytest.mark.parametrize("key", [KEY, OTHER_KEY], ids=["first", "second"])
def test_decode_with_several_keys_verifies_what_any_signed(key):
    assert decode(signed(key=key), (KEY, OTHER_KEY)) == {"sub": "alice"}


def test_signer_after_key_is_pruned_refuses_its_tokens():
    token = TokenSigner(OTHER_KEY).sign({"sub": "alice"})

    with pytest.raises(InvalidSignatureError):
        TokenSigner(KEY).verify(token)


# --- TokenSigner --------------------------------------------------------------------------------


def test_sign_with_issuer_and_audience_adds_all_claims():
    signer = signer_at(NOW + 0.9, issuer="https://a.example", audience="api", lifetime=60)

    claims = decode(signer.sign({"sub": "alice"}), KEY, audience="api", now=NOW + 1)

    jti = claims.pop("jti")
    assert claims == {
        "sub": "alice", "iat": NOW, "exp": NOW + 60, "iss": "https://a.example", "aud": "api"}
    assert type(jti) is str and len(jti) >= 22  # 128 bits


def test_sign_without_policy_adds_times_and_jti_alone():
    claims = decode(signer_at(NOW).sign({"sub": "alice"}), KEY, now=NOW)

    assert set(claims) == {"sub", "iat", "exp", "jti"}
    assert claims["exp"] == NOW + 3600


def test_sign_twice_makes_different_jti():
    signer = signer_at(NOW)

    tokens = {signer.sign({"sub": "alice"}) for _ in range(100)}

    assert len({signer.verify(token)["jti"] for token in tokens}) == 100


@pytest.mark.parametrize("name, value", [
    ("iat", NOW - 5), ("exp", NOW + 5), ("jti", "mine"), ("iss", "https://b.example"),
    ("aud", ["api", "other"]),
])
def test_sign_with_claim_given_keeps_it(name, value):
    signer = signer_at(NOW, issuer="https://a.example", audience="api")

    token = signer.sign({"sub": "alice", name: value})

    assert decode(token, KEY, audience="api", now=NOW)[name] == value


def test_sign_of_claims_leaves_the_callers_dict_alone():
    claims = {"sub": "alice"}

    signer_at(NOW).sign(claims)

    assert claims == {"sub": "alice"}


def test_signer_with_list_audience_verifies_its_own_tokens():
    signer = signer_at(NOW, audience=["api", "web"])

    claims = signer.verify(signer.sign({"sub": "alice"}))

    assert claims["aud"] == ["api", "web"]


def test_signer_without_clock_uses_the_time_of_day():
    before = int(time.time())

    claims = TokenSigner(KEY).verify(TokenSigner(KEY).sign({"sub": "alice"}))

    assert before <= claims["iat"] <= time.time()
    assert claims["exp"] == claims["iat"] + 3600


@pytest.mark.parametrize("payload, missing", [
    (b'{"exp":1700000001}', "sub"), (b'{"sub":"alice"}', "exp"), (b"{}", "exp"),
], ids=["no_sub", "no_exp", "neither"])
def test_verify_of_token_without_required_claim_is_refused(payload, missing):
    with pytest.raises(MissingRequiredClaimError) as caught:
        signer_at(NOW).verify(signed(payload))

    assert caught.value.claim == missing


@pytest.mark.parametrize("now, error", [
    (NOW + 3600 + 10, ExpiredSignatureError), (NOW - 11, ImmatureSignatureError),
], ids=["expired", "immature"])
def test_verify_outside_of_lifetime_and_leeway_is_refused(now, error):
    token = signer_at(NOW).sign({"sub": "alice"})

    with pytest.raises(error):
        signer_at(now, leeway=10).verify(token)


@pytest.mark.parametrize("now", [NOW + 3600 + 9, NOW - 10], ids=["last", "first"])
def test_verify_in_the_outmost_second_of_lifetime_and_leeway_is_accepted(now):
    token = signer_at(NOW).sign({"sub": "alice"})

    claims = signer_at(now, leeway=10).verify(token)

    assert claims["sub"] == "alice"


@pytest.mark.parametrize("policy, error", [
    ({"issuer": "https://b.example", "audience": "api"}, InvalidIssuerError),
    ({"issuer": "https://a.example", "audience": "web"}, InvalidAudienceError),
    ({"issuer": "https://a.example"}, InvalidAudienceError),
], ids=["other_issuer", "other_audience", "no_audience"])
def test_verify_of_token_of_another_policy_is_refused(policy, error):
    token = signer_at(NOW, issuer="https://a.example", audience="api").sign({"sub": "alice"})

    with pytest.raises(error):
        signer_at(NOW, **policy).verify(token)


@pytest.mark.parametrize("policy, missing", [
    ({"issuer": "https://a.example"}, "iss"), ({"audience": "api"}, "aud"),
], ids=["issuer", "audience"])
def test_verify_of_token_without_configured_claim_is_refused(policy, missing):
    token = signer_at(NOW).sign({"sub": "alice"})

    with pytest.raises(MissingRequiredClaimError) as caught:
        signer_at(NOW, **policy).verify(token)

    assert caught.value.claim == missing


# --- Policy of decode ---------------------------------------------------------------------------

TIMES = [
    # claim, leeway, now that is refused, the nearest now that is not, error
    ("exp", 0, NOW, NOW - 1, ExpiredSignatureError),
    ("exp", 0, NOW, NOW - 0.001, ExpiredSignatureError),
    ("exp", 30, NOW + 30, NOW + 29, ExpiredSignatureError),
    ("exp", 0.5, NOW + 0.5, NOW + 0.25, ExpiredSignatureError),
    ("nbf", 0, NOW - 1, NOW, ImmatureSignatureError),
    ("nbf", 0, NOW - 0.001, NOW, ImmatureSignatureError),
    ("nbf", 30, NOW - 31, NOW - 30, ImmatureSignatureError),
    ("nbf", 0.5, NOW - 0.75, NOW - 0.5, ImmatureSignatureError),
    ("iat", 0, NOW - 1, NOW, ImmatureSignatureError),
    ("iat", 30, NOW - 31, NOW - 30, ImmatureSignatureError),
    ("iat", 0.5, NOW - 0.75, NOW - 0.5, ImmatureSignatureError),
]


@pytest.mark.parametrize("value", [NOW, float(NOW)], ids=["int", "float"])
@pytest.mark.parametrize("name, leeway, refused, accepted, error", TIMES)
def test_decode_at_the_boundary_of_a_time_decides_exactly(
        name, leeway, refused, accepted, error, value):
    token = encode({name: value}, KEY)

    claims = decode(token, KEY, now=accepted, leeway=leeway)

    assert claims == {name: value}
    assert type(refusal(token, now=refused, leeway=leeway)) is error


@pytest.mark.parametrize("name, error", [
    ("nbf", ImmatureSignatureError), ("iat", ImmatureSignatureError),
])
def test_decode_refused_as_immature_names_the_claim(name, error):
    caught = refusal(encode({name: NOW + 1}, KEY))

    assert type(caught) is error
    assert name in str(caught)


def test_decode_with_now_zero_is_at_the_epoch():
    token = encode({"exp": 1, "iat": 0}, KEY)

    assert decode(token, KEY, now=0) == {"exp": 1, "iat": 0}


@pytest.mark.parametrize("claims, error", [
    ({"exp": 1300819380}, ExpiredSignatureError), ({"nbf": 2**40}, ImmatureSignatureError),
], ids=["long_expired", "far_future"])
def test_decode_without_now_uses_the_time_of_day(claims, error):
    with pytest.raises(error):
        decode(encode(claims, KEY), KEY)


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_decode_with_leeway_that_is_no_number_accepts_nothing(name):
    assert isinstance(refusal(encode({name: NOW}, KEY), leeway=math.nan), InvalidTokenError)


@pytest.mark.parametrize("leeway", [0, 60, 0.5], ids=repr)
@pytest.mark.parametrize("payload, error", [
    (b'{"exp":1%s}', None), (b'{"exp":-1%s}', ExpiredSignatureError),
    (b'{"nbf":1%s}', ImmatureSignatureError), (b'{"nbf":-1%s}', None),
    (b'{"iat":1%s}', ImmatureSignatureError), (b'{"iat":-1%s}', None),
])
def test_decode_of_time_beyond_every_float_does_not_depend_on_the_leeway(payload, error, leeway):
    token = signed(payload % (b"0" * 400))

    if error:
        assert type(refusal(token, leeway=leeway)) is error
    else:
        assert decode(token, KEY, now=NOW, leeway=leeway)


@pytest.mark.parametrize("require", [["exp"], ("sub", "exp"), {"exp": 1}, frozenset(["exp"])],
                         ids=["list", "tuple", "dict", "set"])
def test_decode_with_required_claim_missing_is_refused(require):
    error = refusal(signed(), require=require)

    assert (type(error), error.claim) == (MissingRequiredClaimError, "exp")


def test_decode_with_required_claims_there_returns_them():
    assert decode(signed(), KEY, require=["sub"]) == {"sub": "alice"}


@pytest.mark.parametrize("aud, audience", [
    ("api", "api"), ("api", ["web", "api"]), ("api", ("web", "api")), (["web", "api"], "api"),
    (["web", "api"], ["api", "other"]), ("", ""),
], ids=repr)
def test_decode_with_audience_that_the_token_names_is_accepted(aud, audience):
    token = encode({"aud": aud}, KEY)

    assert decode(token, KEY, audience=audience) == {"aud": aud}


@pytest.mark.parametrize("aud, audience", [
    ("api", "web"), ("api", None), (["api"], None), ([], None), ([], "api"), ([], []),
    ("api", []), ("ap", "api"), ("api", "ap"), ("", "api"), ("API", "api"), ("api", ""),
    ("api", ["apis", "web"]), (["a", "p", "i"], "api"), ("", None),
], ids=repr)
def test_decode_with_audience_that_the_token_does_not_name_is_refused(aud, audience):
    token = encode({"aud": aud}, KEY)

    assert type(refusal(token, audience=audience)) is InvalidAudienceError


@pytest.mark.parametrize("audience", ["api", "", ["api"], []], ids=repr)
def test_decode_with_audience_of_token_without_aud_is_refused(audience):
    error = refusal(signed(), audience=audience)

    assert (type(error), error.claim) == (MissingRequiredClaimError, "aud")


@pytest.mark.parametrize("iss, issuer", [
    ("https://a.example", "https://a.example"), ("https://a.example", None), ("", ""),
    ("https://a.example", ["https://b.example", "https://a.example"]),
], ids=repr)
def test_decode_with_issuer_of_the_token_is_accepted(iss, issuer):
    token = encode({"iss": iss}, KEY)

    assert decode(token, KEY, issuer=issuer) == {"iss": iss}


@pytest.mark.parametrize("iss, issuer", [
    ("https://a.example", "https://b.example"), ("https://a.example/", "https://a.example"),
    ("https://a", "https://a.example"), ("HTTPS://a.example", "https://a.example"),
    ("", "https://a.example"), ("https://a.example", []), ("https://a.example", ""),
], ids=repr)
def test_decode_with_issuer_other_than_the_tokens_is_refused(iss, issuer):
    token = encode({"iss": iss}, KEY)

    assert type(refusal(token, issuer=issuer)) is InvalidIssuerError


@pytest.mark.parametrize("issuer", ["https://a.example", "", ["https://a.example"]], ids=repr)
def test_decode_with_issuer_of_token_without_iss_is_refused(issuer):
    error = refusal(signed(), issuer=issuer)

    assert (type(error), error.claim) == (MissingRequiredClaimError, "iss")


# --- Headers, all of them correctly signed ------------------------------------------------------

MISSING = object()


@pytest.mark.parametrize("alg", [
    MISSING, None, "", "none", "None", "NONE", "nOnE", "hs256", "Hs256", "HS256 ", " HS256",
    "HS256\x00", "HS-256", "\uff28S256", "HS384", "HS512", "HS1", "RS256", "PS256", "ES256",
    "EdDSA", "dir", "A256GCMKW", "HMAC-SHA256", ["HS256"], {"alg": "HS256"}, ["HS256", "none"],
    True, 256, 0,
], ids=lambda alg: "missing" if alg is MISSING else ascii(alg))
def test_decode_of_other_algorithm_is_refused(alg):
    header = {"typ": "JWT"} if alg is MISSING else {"alg": alg, "typ": "JWT"}
    token = signed_with(**header)

    assert type(refusal(token)) is InvalidAlgorithmError


@pytest.mark.parametrize("alg", ["none", "None", "HS512", "RS256"])
def test_decode_of_other_algorithm_without_signature_is_refused(alg):
    token = b64(b'{"alg":"%s"}' % alg.encode()) + b"." + b64(PAYLOAD) + b"."

    assert type(refusal(token)) is InvalidAlgorithmError


def test_decode_of_real_hs512_signature_is_refused():
    signing_input = b64(b'{"alg":"HS512"}') + b"." + b64(PAYLOAD)

    token = signing_input + b"." + b64(hmac.digest(KEY, signing_input, "sha512"))

    assert type(refusal(token)) is InvalidAlgorithmError


@pytest.mark.parametrize("extension", [
    {"crit": ["exp"]}, {"crit": ["b64"], "b64": False}, {"crit": []}, {"crit": None},
    {"b64": False}, {"b64": True}, {"b64": None},
], ids=repr)
def test_decode_of_header_with_extension_is_refused(extension):
    token = signed_with(alg="HS256", **extension)

    assert type(refusal(token)) is DecodeError


@pytest.mark.parametrize("typ", [
    "JWT", "jwt", "jWt", "at+jwt", "AT+JWT", "At+Jwt", "application/jwt", "application/at+jwt",
    "APPLICATION/JWT", "Application/AT+jwt", MISSING,
], ids=lambda typ: "missing" if typ is MISSING else typ)
def test_decode_of_typ_that_is_a_jwt_is_accepted(typ):
    token = signed_with(alg="HS256", **({} if typ is MISSING else {"typ": typ}))

    assert decode(token, KEY) == {"sub": "alice"}


@pytest.mark.parametrize("typ", [
    "", None, True, 1, [], ["JWT"], {}, "JWE", "JWS", "JOSE", "JOSE+JSON", "JWT ", " JWT", "JWT\n",
    "JWT\x00", "id+jwt", "dpop+jwt", "secevent+jwt", "logout+jwt", "at+", "+jwt", "application/",
    "application/application/jwt", "text/jwt", "application/jwt; charset=utf-8", "jwt,at+jwt",
    "\uff2a\uff37\uff34", "at+jwt+at",
], ids=ascii)
def test_decode_of_typ_that_is_no_jwt_is_refused(typ):
    token = signed_with(alg="HS256", typ=typ)

    assert type(refusal(token)) is DecodeError


KEY_HEADERS = [
    pytest.param({"jwk": {"kty": "oct", "k": b64(OTHER_KEY).decode()}}, id="jwk"),
    pytest.param({"jku": "https://attacker.example/jwks.json"}, id="jku"),
    pytest.param({"x5u": "https://attacker.example/cert.pem"}, id="x5u"),
    pytest.param({"x5c": [b64(OTHER_KEY).decode()]}, id="x5c"),
    pytest.param({"kid": "/dev/null"}, id="kid_file"),
    pytest.param({"kid": "' UNION SELECT 'key"}, id="kid_sql"),
    pytest.param({"kid": 1}, id="kid_number"),
    pytest.param({"kid": None, "jwk": None, "x5t": [], "cty": "JWT", "zip": "DEF"}, id="odd"),
]


@pytest.mark.parametrize("header", KEY_HEADERS)
@pytest.mark.parametrize("key", [OTHER_KEY, b"", bytes(32)], ids=["own", "empty", "zeros"])
def test_decode_of_header_that_brings_its_key_is_refused(header, key):
    token = signed(header=json.dumps({"alg": "HS256", **header}).encode(), key=key)

    assert type(refusal(token)) is InvalidSignatureError


@pytest.mark.parametrize("header", KEY_HEADERS)
def test_decode_of_header_with_key_hint_uses_our_key(header):
    token = signed_with(alg="HS256", **header)

    assert decode(token, KEY) == {"sub": "alice"}


# --- JSON ---------------------------------------------------------------------------------------

JUNK_JSON = [
    pytest.param(b"", id="empty"),
    pytest.param(b" ", id="white_space"),
    pytest.param(b"null", id="null"),
    pytest.param(b"true", id="true"),
    pytest.param(b"1", id="number"),
    pytest.param(b'"sub"', id="string"),
    pytest.param(b"[]", id="array"),
    pytest.param(b'[{"sub":"alice"}]', id="array_of_object"),
    pytest.param(b'[["sub","alice"]]', id="array_of_pairs"),
    pytest.param(b"{}{}", id="two_objects"),
    pytest.param(b'{"a":1}\n{"a":1}', id="two_lines"),
    pytest.param(b"{},", id="trailing_comma_outside"),
    pytest.param(b'{"a":1,}', id="trailing_comma"),
    pytest.param(b'{"a":1', id="unclosed"),
    pytest.param(b'{"a":1}}', id="closed_twice"),
    pytest.param(b'{"a":}', id="no_value"),
    pytest.param(b'{"a"}', id="no_colon"),
    pytest.param(b'{:1}', id="no_name"),
    pytest.param(b"{a:1}", id="bare_name"),
    pytest.param(b"{1:1}", id="number_as_name"),
    pytest.param(b"{'a':1}", id="single_quotes"),
    pytest.param(b'{"a":1/*c*/}', id="comment"),
    pytest.param(b'{"a":1}//', id="comment_after"),
    pytest.param(b"{}\x00", id="nul_after"),
    pytest.param(b"\x00{}", id="nul_before"),
    pytest.param(b"\xef\xbb\xbf{}", id="bom"),
    pytest.param("\u00a0{}".encode(), id="no_break_space"),
    pytest.param(b"\x0b{}\x0c", id="vertical_tab"),
    pytest.param("{}\u2028".encode(), id="line_separator"),
    pytest.param(b"\xff\xfe{}", id="not_utf8"),
    pytest.param('{"a":1}'.encode("utf-16"), id="utf16"),
    pytest.param('{"a":1}'.encode("utf-16-le"), id="utf16_no_bom"),
    pytest.param('{"a":1}'.encode("utf-32-be"), id="utf32"),
    pytest.param(b'{"a":"\xe9"}', id="latin1"),
    pytest.param(b'{"a":"\xc0\xaf"}', id="overlong_utf8"),
    pytest.param(b'{"a":"\xed\xa0\x80"}', id="surrogate_in_utf8"),
    pytest.param(b'{"a":"\xf4\x90\x80\x80"}', id="beyond_unicode"),
    pytest.param(b'{"a":"\xe2\x98', id="truncated_utf8"),
    pytest.param(b'{"a":"\\ud800"}', id="high_surrogate"),
    pytest.param(b'{"a":"\\udc00"}', id="low_surrogate"),
    pytest.param(b'{"a":"\\udc00\\ud800"}', id="surrogates_reversed"),
    pytest.param(b'{"\\ud800":1}', id="surrogate_in_name"),
    pytest.param(b'{"a":{"b":["x\\ud83d"]}}', id="surrogate_nested"),
    pytest.param(b'{"a":"\\u12g4"}', id="bad_unicode_escape"),
    pytest.param(b'{"a":"\\x41"}', id="bad_escape"),
    pytest.param(b'{"a":"\n"}', id="newline_in_string"),
    pytest.param(b'{"a":"\x00"}', id="nul_in_string"),
    pytest.param(b'{"a":1,"a":2}', id="duplicate"),
    pytest.param(b'{"a":1,"a":1}', id="duplicate_same_value"),
    pytest.param(b'{"a":1,"\\u0061":2}', id="duplicate_escaped"),
    pytest.param(b'{"":1,"":2}', id="duplicate_empty"),
    pytest.param(b'{"a":1,"b":2,"c":3,"b":4}', id="duplicate_apart"),
    pytest.param(b'{"a":{"b":1,"b":2}}', id="duplicate_nested"),
    pytest.param(b'{"a":[{"b":1},{"b":1,"b":2}]}', id="duplicate_in_array"),
    pytest.param(b'{"a":{"b":{"c":{"d":1,"d":1}}}}', id="duplicate_deep"),
    pytest.param(b'{"a":{"b":1,"b":2},"a":3}', id="duplicate_both"),
    pytest.param(b'{"a":1,"a":{}}', id="duplicate_object"),
    pytest.param(b'{"a":"x://y","a":1}', id="duplicate_beside_url"),
    pytest.param(b'{"a":"x://y","b":{"c":1,"c":2}}', id="duplicate_nested_beside_url"),
    pytest.param(b'{"a"://"b"}', id="url_without_quotes"),
    pytest.param(b'{"a":NaN}', id="nan"),
    pytest.param(b'{"a":Infinity}', id="infinity"),
    pytest.param(b'{"a":-Infinity}', id="minus_infinity"),
    pytest.param(b'{"a":[1,[NaN]]}', id="nan_nested"),
    pytest.param(b'{"a":nan}', id="nan_lower_case"),
    pytest.param(b'{"a":-NaN}', id="minus_nan"),
    pytest.param(b'{"a":1e400}', id="overflow"),
    pytest.param(b'{"a":-1e400}', id="overflow_negative"),
    pytest.param(b'{"a":1.0E+99999999999}', id="overflow_exponent"),
    pytest.param(b'{"a":[{"b":1e309}]}', id="overflow_nested"),
    pytest.param(b'{"a":1%s.0}' % (b"0" * 400), id="overflow_digits"),
    pytest.param(b'{"a":1%s}' % (b"0" * 5000), id="integer_of_5001_digits"),
    pytest.param(b'{"a":-%s}' % (b"9" * 12_000), id="integer_of_12000_digits"),
    pytest.param(b'{"a":01}', id="leading_zero"),
    pytest.param(b'{"a":+1}', id="plus_sign"),
    pytest.param(b'{"a":.5}', id="no_integer_part"),
    pytest.param(b'{"a":1.}', id="no_fraction"),
    pytest.param(b'{"a":0x10}', id="hexadecimal"),
    pytest.param(b'{"a":1_000}', id="underscore"),
    pytest.param('{"a":\u0661}'.encode(), id="arabic_digit"),
    pytest.param(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", id="deep_array"),
    pytest.param(b'{"a":' * 2000 + b"1" + b"}" * 2000, id="deep_object"),
    pytest.param(b'{"a":' + b"[" * 12_000, id="deep_array_unclosed"),
    pytest.param(b'{"a":' * 2400, id="deep_object_unclosed"),
    pytest.param(b"[" * 12_000, id="deep_array_alone"),
]
LEGAL_JSON = [
    pytest.param(b"{}", {}, id="empty"),
    pytest.param(b' \t\r\n{ "a" :\n1\t,"b": [ ] }\r\n ', {"a": 1, "b": []}, id="white_space"),
    pytest.param(b'{"a":{"b":{"a":1}},"b":[{"a":1},{"a":2}]}',
                 {"a": {"b": {"a": 1}}, "b": [{"a": 1}, {"a": 2}]}, id="same_name_apart"),
    pytest.param(b'{"a":"b:c","d":":::"}', {"a": "b:c", "d": ":::"}, id="colons_in_strings"),
    pytest.param(b'{"a:b":{}}', {"a:b": {}}, id="colon_in_name"),
    pytest.param(b'{"a":"://","b":"x://y:80/"}', {"a": "://", "b": "x://y:80/"}, id="urls"),
    pytest.param(b'{"a":{},"b":[{}]}', {"a": {}, "b": [{}]}, id="empty_objects"),
    pytest.param(b'{"a":"\\ud83d\\ude00\\u0000"}', {"a": "\U0001f600\0"}, id="escapes"),
    pytest.param('{"a":"\ufeff\U0001f600"}'.encode(), {"a": "\ufeff\U0001f600"}, id="utf8"),
    pytest.param(b'{"a":"NaN","b":"Infinity"}', {"a": "NaN", "b": "Infinity"}, id="nan_as_text"),
    pytest.param(b'{"a":1e308,"b":1e-400,"c":-0}', {"a": 1e308, "b": 0.0, "c": 0}, id="numbers"),
    pytest.param(b'{"a":1%s}' % (b"0" * 400), {"a": 10**400}, id="integer_of_401_digits"),
    pytest.param(b'{"a":[[[[[[[[[[{"b":1}]]]]]]]]]]}', {"a": [[[[[[[[[[{"b": 1}]]]]]]]]]]},
                 id="ten_levels"),
    pytest.param(b'{"a":[' + b"{}," * 2000 + b"[]]}", {"a": [{}] * 2000 + [[]]}, id="wide"),
    pytest.param(b'{"a":"\\"%s"}' % (b"[{" * 3000), {"a": '"' + "[{" * 3000},
                 id="brackets_in_string"),
]


@pytest.mark.parametrize("payload", JUNK_JSON)
def test_decode_of_signed_junk_payload_is_refused(payload):
    token = signed(payload)

    assert type(refusal(token)) is DecodeError


@pytest.mark.parametrize("header", JUNK_JSON)
def test_decode_of_signed_junk_header_is_refused(header):
    token = signed(header=header)

    assert type(refusal(token)) is DecodeError


@pytest.mark.parametrize("junk", [
    pytest.param(b'"a":1,"a":1', id="duplicate"),
    pytest.param(b'"alg":"HS256"', id="duplicate_alg"),
    pytest.param(b'"\\u0061lg":"none"', id="duplicate_alg_escaped"),
    pytest.param(b'"a":{"b":1,"b":1}', id="duplicate_nested"),
    pytest.param(b'"a":NaN', id="nan"),
    pytest.param(b'"a":1e400', id="overflow"),
    pytest.param(b'"a":"\\ud800"', id="lone_surrogate"),
    pytest.param(b'"a":' + b"[" * 5000 + b"]" * 5000, id="deep_array"),
    pytest.param(b'"a":' + b'{"a":' * 1900 + b"1" + b"}" * 1900, id="deep_object"),
])
def test_decode_of_signed_header_that_says_hs256_with_junk_is_refused(junk):
    token = signed(header=b'{"alg":"HS256",%s}' % junk)

    assert type(refusal(token)) is DecodeError


@pytest.mark.parametrize("data", JUNK_JSON)
def test_parse_json_object_of_junk_raises_decode_error(data):
    with pytest.raises(DecodeError) as caught:
        parse_json_object(data)

    assert type(caught.value) is DecodeError
    assert len(str(caught.value)) < 40


@pytest.mark.parametrize("size", [12_000, 65_536])
@pytest.mark.parametrize("opening", [b"[", b'{"":', b'[{"":'], ids=["array", "object", "both"])
def test_parse_json_object_of_deep_request_body_raises_decode_error(opening, size):
    data = b'{"a":' + opening * (size // len(opening))

    with pytest.raises(DecodeError):
        parse_json_object(data)


@pytest.mark.parametrize("data, value", LEGAL_JSON)
def test_parse_json_object_of_legal_json_returns_it(data, value):
    assert parse_json_object(data) == value


@pytest.mark.parametrize("payload, value", LEGAL_JSON)
def test_decode_of_legal_payload_returns_it(payload, value):
    assert decode(signed(payload), KEY, now=NOW) == value


@pytest.mark.parametrize("header", [
    b' {"alg" : "HS256"}\r\n', b'{"typ":"JWT","alg":"HS256"}', b'{"alg":"\\u0048S256"}',
    b'{"alg":"HS256","nested":{"alg":"none"}}', '{"alg":"HS256","kid":"\u2603:"}'.encode(),
], ids=["white_space", "other_order", "escape", "nested_alg", "unicode"])
def test_decode_of_legal_header_is_accepted(header):
    assert decode(signed(header=header), KEY) == {"sub": "alice"}


DEEP_HEADER_IN_SMALL_THREAD = """
import threading, wsgi_auth

def verify():
    try:
        wsgi_auth.decode({token!r}, "k" * 32)
    except wsgi_auth.InvalidTokenError:
        print("refused")

threading.stack_size(512 * 1024)  # musl has 128 KiB, python:alpine 1 MiB, mod_wsgi what is set
thread = threading.Thread(target=verify)
thread.start()
thread.join()
"""


def test_decode_of_deep_header_in_thread_with_small_stack_is_refused():
    token = b64(b'{"a":' + b"[" * 12_000) + b".e30.AAAA"  # nobody signed it
    script = DEEP_HEADER_IN_SMALL_THREAD.format(token=token)

    result = subprocess.run(
        [sys.executable, "-c", script], cwd=os.path.dirname(wsgi_auth.__file__),
        stdout=subprocess.PIPE, timeout=60)

    assert (result.returncode, result.stdout.strip()) == (0, b"refused")


# --- base64url, spelt otherwise and correctly signed --------------------------------------------

# Each of the three parts has bits to spare in its last character, a "-" and a "_".
ODD_HEADER = b64(b'{"alg":"HS256","a":">?>?>?"}')
ODD_PAYLOAD = b64(b'{"s":">?>?>?>?"}')
ODD_TOKEN = sealed(ODD_HEADER, ODD_PAYLOAD)

SPELLINGS = [
    pytest.param(lambda text: text + b"=" * (-len(text) % 4), id="padded"),
    pytest.param(lambda text: text + b"=", id="one_pad"),
    pytest.param(lambda text: text + b"====", id="four_pads"),
    pytest.param(lambda text: b"=" + text, id="pad_before"),
    pytest.param(lambda text: text[:4] + b"=" + text[4:], id="pad_inside"),
    pytest.param(lambda text: text + b" ", id="space_after"),
    pytest.param(lambda text: b" " + text, id="space_before"),
    pytest.param(lambda text: text[:4] + b" " + text[4:], id="space_inside"),
    pytest.param(lambda text: text + b"\n", id="newline_after"),
    pytest.param(lambda text: text[:8] + b"\r\n" + text[8:], id="newline_inside"),
    pytest.param(lambda text: text + b"\t", id="tab_after"),
    pytest.param(lambda text: text + b"\x00", id="nul_after"),
    pytest.param(lambda text: text + b"!", id="other_character_after"),
    pytest.param(lambda text: text[:4] + b"!!!!" + text[4:], id="other_characters_inside"),
    pytest.param(lambda text: text[:-1] + bytes([text[-1] + 1]), id="stray_bits"),
    pytest.param(lambda text: text + b"A" * (-(len(text) - 1) % 4), id="one_beyond_a_quantum"),
    pytest.param(lambda text: text.translate(bytes.maketrans(b"-_", b"+/")), id="base64_alphabet"),
    pytest.param(lambda text: text.replace(b"-", b"+"), id="plus_for_minus"),
    pytest.param(lambda text: text.replace(b"_", b"/"), id="slash_for_underscore"),
    pytest.param(lambda text: text.replace(b"_", b","), id="imap_alphabet"),
    pytest.param(lambda text: text.replace(b"-", b"%2D"), id="percent_encoded"),
    pytest.param(lambda text: text + b"\xc3\xa9", id="utf8_after"),
    pytest.param(lambda text: bytes([text[0] | 0x80]) + text[1:], id="high_bit"),
    pytest.param(lambda text: b"\xef\xbb\xbf" + text, id="bom"),
]


def test_spelling_of_each_part_can_be_odd():
    parts = ODD_TOKEN.split(b".")

    assert decode(ODD_TOKEN, KEY) == {"s": ">?>?>?>?"}
    assert all(b"-" in part and b"_" in part and len(part) % 4 for part in parts)


@pytest.mark.parametrize("spell", SPELLINGS)
def test_decode_of_header_spelt_otherwise_is_refused(spell):
    header = spell(ODD_HEADER)

    assert header != ODD_HEADER
    assert type(refusal(sealed(header, ODD_PAYLOAD))) is DecodeError


@pytest.mark.parametrize("spell", SPELLINGS)
def test_decode_of_payload_spelt_otherwise_is_refused(spell):
    payload = spell(ODD_PAYLOAD)

    assert payload != ODD_PAYLOAD
    assert type(refusal(sealed(ODD_HEADER, payload))) is DecodeError


@pytest.mark.parametrize("spell", SPELLINGS)
def test_decode_of_signature_spelt_otherwise_is_refused(spell):
    signing_input, _, signature = ODD_TOKEN.rpartition(b".")
    token = signing_input + b"." + spell(signature)

    assert token != ODD_TOKEN
    assert type(refusal(token)) is InvalidSignatureError


# --- Claims of a wrong type, all of them correctly signed ---------------------------------------


@pytest.mark.parametrize("value", [
    None, True, False, "", str(NOW + 9), "NaN", [], [NOW + 9], {}, {"$date": NOW + 9},
], ids=repr)
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_decode_of_time_that_is_no_number_is_refused(name, value):
    error = refusal(encode({name: value}, KEY))

    assert type(error) is InvalidClaimError
    assert name in str(error)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400"])
@pytest.mark.parametrize("name", [b"exp", b"nbf", b"iat"])
def test_decode_of_time_that_is_not_finite_is_refused(name, number):
    assert type(refusal(signed(b'{"%s":%s}' % (name, number)))) is DecodeError


@pytest.mark.parametrize("number, error", [
    ("0", ExpiredSignatureError), ("-0", ExpiredSignatureError), ("-1", ExpiredSignatureError),
    ("1e-400", ExpiredSignatureError), ("-1e308", ExpiredSignatureError),
    ("-1" + "0" * 400, ExpiredSignatureError), ("1.7E9", ExpiredSignatureError),
])
def test_decode_of_exp_that_is_odd_but_past_is_expired(number, error):
    assert type(refusal(signed(b'{"exp":%s}' % number.encode()))) is error


@pytest.mark.parametrize("value", [None, True, 0, 1.5, [], ["alice"], {}], ids=repr)
@pytest.mark.parametrize("name, error", [
    ("sub", InvalidClaimError), ("jti", InvalidClaimError), ("iss", InvalidIssuerError),
])
def test_decode_of_name_that_is_no_string_is_refused(name, error, value):
    assert type(refusal(encode({name: value}, KEY))) is error


@pytest.mark.parametrize("value", [None, True, 0, [], ["https://a.example"], {}], ids=repr)
def test_decode_with_issuer_of_iss_that_is_no_string_is_refused(value):
    error = refusal(encode({"iss": value}, KEY), issuer="https://a.example")

    assert type(error) is InvalidIssuerError


@pytest.mark.parametrize("audience", ["api", ["api"], None], ids=repr)
@pytest.mark.parametrize("aud", [
    None, True, 0, 1.5, {}, {"api": 1}, [None], ["api", None], ["api", 1], [["api"]], ["api", {}],
    [True],
], ids=repr)
def test_decode_of_aud_of_wrong_type_is_refused(aud, audience):
    error = refusal(encode({"aud": aud}, KEY), audience=audience)

    assert type(error) is InvalidAudienceError


# --- Shapes -------------------------------------------------------------------------------------

TOKEN = encode({"sub": "alice", "secret": CANARY}, KEY)


@pytest.mark.parametrize("token", [
    None, True, 0, 1.5, [], {}, (), [TOKEN], {"token": TOKEN}, bytearray(TOKEN.encode()),
    memoryview(TOKEN.encode()), TOKEN.split("."), object(), bytes,
], ids=lambda token: type(token).__name__)
def test_decode_of_what_is_not_text_is_refused(token):
    assert type(refusal(token)) is DecodeError


SHAPES = [
    pytest.param("", DecodeError, id="empty"),
    pytest.param(".", DecodeError, id="one_dot"),
    pytest.param("..", DecodeError, id="two_dots"),
    pytest.param("...", DecodeError, id="three_dots"),
    pytest.param("a", DecodeError, id="one_part"),
    pytest.param(TOKEN.split(".")[0], DecodeError, id="header_alone"),
    pytest.param(TOKEN.rpartition(".")[0], DecodeError, id="no_signature"),
    pytest.param(TOKEN.partition(".")[2], DecodeError, id="no_header"),
    pytest.param(TOKEN.rpartition(".")[0] + ".", InvalidSignatureError, id="empty_signature"),
    pytest.param("." + TOKEN.partition(".")[2], DecodeError, id="empty_header"),
    pytest.param("." + TOKEN, DecodeError, id="dot_before"),
    pytest.param(TOKEN + ".", InvalidSignatureError, id="dot_after"),
    pytest.param(TOKEN + "." + TOKEN, InvalidSignatureError, id="twice"),
    pytest.param(TOKEN + "." + TOKEN.split(".")[2], InvalidSignatureError, id="four_parts"),
    pytest.param(sealed(b64(HEADER), b64(PAYLOAD) + b"." + b64(PAYLOAD)).decode(), DecodeError,
                 id="four_parts_signed"),
    pytest.param(sealed(b64(HEADER), b"." + b64(PAYLOAD)).decode(), DecodeError,
                 id="empty_part_signed"),
    pytest.param(sealed(b64(HEADER), b64(PAYLOAD) + b".").decode(), DecodeError,
                 id="dot_in_payload_signed"),
    pytest.param(sealed(b"", b64(PAYLOAD)).decode(), DecodeError, id="empty_header_signed"),
    pytest.param(sealed(b64(HEADER), b"").decode(), DecodeError, id="empty_payload_signed"),
    pytest.param(b64(b'{"alg":"dir","enc":"A256GCM"}').decode() + "..AAAA.AAAA.AAAA",
                 InvalidAlgorithmError, id="jwe"),
    pytest.param(json.dumps({"protected": b64(HEADER).decode(), "payload": b64(PAYLOAD).decode()}),
                 DecodeError, id="json_serialization"),
    pytest.param("Bearer " + TOKEN, DecodeError, id="scheme_before"),
    pytest.param(" " + TOKEN, DecodeError, id="space_before"),
    pytest.param(TOKEN + "\n", InvalidSignatureError, id="newline_after"),
    pytest.param(TOKEN + "\x00", InvalidSignatureError, id="nul_after"),
    pytest.param('"' + TOKEN + '"', DecodeError, id="quoted"),
    pytest.param(TOKEN.swapcase(), DecodeError, id="other_case"),
    pytest.param(TOKEN.replace(".", ":"), DecodeError, id="colons"),
    pytest.param(TOKEN.replace(".", "\u3002"), DecodeError, id="ideographic_full_stops"),
    pytest.param("\uff45" + TOKEN[1:], DecodeError, id="fullwidth"),
    pytest.param(TOKEN[:-1] + "\u0661", InvalidSignatureError, id="arabic_digit"),
    pytest.param(TOKEN + "\u00e9", InvalidSignatureError, id="latin1"),
    pytest.param("\ufeff" + TOKEN, DecodeError, id="bom"),
    pytest.param(TOKEN + "\ud800", InvalidSignatureError, id="high_surrogate"),
    pytest.param(TOKEN + "\udcff", InvalidSignatureError, id="surrogate_escape"),
    pytest.param("\udcff" * 40, DecodeError, id="surrogates"),
    pytest.param("{}.{}.{}", DecodeError, id="braces"),
    pytest.param("%s.%s.%s", DecodeError, id="percent"),
    pytest.param("\x00" * 100, DecodeError, id="nuls"),
    pytest.param("." * MAX_TOKEN_BYTES, DecodeError, id="dots"),
    pytest.param("A" * MAX_TOKEN_BYTES, DecodeError, id="letters"),
    pytest.param("A" * (MAX_TOKEN_BYTES + 1), DecodeError, id="too_long"),
    pytest.param("\U0001f600" * MAX_TOKEN_BYTES, DecodeError, id="emoji"),
    pytest.param("." * 1_000_000, DecodeError, id="million_dots"),
]


@pytest.mark.parametrize("token, error", SHAPES)
def test_decode_of_wrong_shape_is_refused(token, error):
    assert type(refusal(token)) is error


@pytest.mark.parametrize("token, error", [shape for shape in SHAPES if shape.values[0].isascii()])
def test_decode_of_wrong_shape_in_bytes_is_refused_alike(token, error):
    assert type(refusal(token.encode())) is error


def signed_of_length(size):
    room = size - len(b64(HEADER)) - 2 - 43  # for the payload, in base64url
    token = signed(b'{"x":"%s"}' % (b"x" * (room * 3 // 4 - len(b'{"x":""}'))))
    assert len(token) == size
    return token


def test_decode_of_token_of_the_longest_size_is_accepted():
    token = signed_of_length(MAX_TOKEN_BYTES)

    assert set(decode(token, KEY)) == {"x"}
    assert MAX_TOKEN_BYTES == 16 * 1024


@pytest.mark.parametrize("size", [MAX_TOKEN_BYTES + 1, 2 * MAX_TOKEN_BYTES])
def test_decode_of_token_over_the_longest_size_is_refused(size):
    token = signed_of_length(size)

    assert type(refusal(token)) is DecodeError
    assert type(refusal(token.decode())) is DecodeError


# --- Signatures ---------------------------------------------------------------------------------


def signature_of(digest):
    """A token whose signature `digest` makes of the signing input."""
    signing_input = b64(HEADER) + b"." + b64(PAYLOAD)
    return signing_input + b"." + digest(signing_input)


@pytest.mark.parametrize("token", [
    pytest.param(signed(key=OTHER_KEY), id="other_key"),
    pytest.param(signed(key=KEY + b"\n"), id="key_with_newline"),
    pytest.param(signed(key=KEY[:-1]), id="key_cut"),
    pytest.param(signed(key=b""), id="empty_key"),
    pytest.param(signed(key=hashlib.sha256(KEY).digest()), id="hash_of_key"),
    pytest.param(signature_of(lambda _: b64(bytes(32))), id="zeros"),
    pytest.param(signature_of(lambda text: b64(hashlib.sha256(text).digest())), id="no_key"),
    pytest.param(signature_of(lambda text: b64(hashlib.sha256(KEY + text).digest())), id="no_hmac"),
    pytest.param(signature_of(lambda text: b64(hmac.digest(KEY, text, "sha512"))), id="sha512"),
    pytest.param(signature_of(lambda text: b64(hmac.digest(KEY, text, "sha512")[:32])),
                 id="sha512_cut"),
    pytest.param(signature_of(lambda text: b64(hmac.digest(KEY, text, "sha256")[:16])), id="cut"),
    pytest.param(signature_of(lambda text: b64(hmac.digest(KEY, text, "sha256") + b"\0")),
                 id="longer"),
    pytest.param(signature_of(lambda text: hmac.digest(KEY, text, "sha256").hex().encode()),
                 id="hexadecimal"),
    pytest.param(signature_of(lambda text: hmac.digest(KEY, text, "sha256").replace(b".", b"")),
                 id="raw"),
    pytest.param(signature_of(lambda _: b64(hmac.digest(KEY, b64(PAYLOAD), "sha256"))),
                 id="of_payload_alone"),
    pytest.param(signature_of(lambda _: b64(hmac.digest(KEY, HEADER + b"." + PAYLOAD, "sha256"))),
                 id="of_decoded_parts"),
    pytest.param(signed().replace(b64(PAYLOAD), b64(b'{"sub":"admin"}')), id="of_other_payload"),
])
def test_decode_of_wrong_signature_is_refused(token):
    assert type(refusal(token)) is InvalidSignatureError


@pytest.mark.parametrize("payload", [
    b64(b"not JSON"), b64(b'{"a":1,"a":1}'), b64(b'{"exp":1}'), b64(b'{"exp":null}'), b"!", b"=",
    b"A", b"", b".", b64(b"[" * 12_000),
], ids=["not_json", "duplicate", "expired", "exp_null", "not_base64", "padding", "one_character",
        "empty", "dot", "deep"])
def test_decode_of_broken_payload_with_wrong_signature_blames_the_signature(payload):
    token = sealed(b64(HEADER), payload, OTHER_KEY)

    assert type(refusal(token)) is InvalidSignatureError  # so not one byte of it was parsed


# --- All of it ----------------------------------------------------------------------------------


def all_hostile_tokens():
    for junk in JUNK_JSON:
        yield from (signed(junk.values[0]), signed(header=junk.values[0]))
    for spelling in SPELLINGS:
        spell = spelling.values[0]
        yield from (sealed(spell(ODD_HEADER), ODD_PAYLOAD), sealed(ODD_HEADER, spell(ODD_PAYLOAD)))
    for name, value in itertools.product(
            ["exp", "nbf", "iat", "sub", "jti", "iss", "aud"], [None, True, [CANARY], {CANARY: 1}]):
        yield encode({name: value}, KEY)
    for value in [CANARY, [CANARY], None]:
        yield from (signed_with(alg=value), signed_with(alg="HS256", typ=value, crit=value))
    yield from (shape.values[0] for shape in SHAPES)


def test_refusal_of_any_hostile_token_holds_no_part_of_it_or_the_key():
    for token in all_hostile_tokens():
        message = str(refusal(token))

        text = token if isinstance(token, str) else token.decode("latin-1")
        assert not any(shares_text(message, part) for part in text[:MAX_TOKEN_BYTES].split("."))
        assert not shares_text(message, CANARY)
        assert not shares_text(message, KEY.decode())


def test_refusal_of_any_hostile_token_is_one_printable_line():
    messages = {str(refusal(token)) for token in all_hostile_tokens()}

    assert len(messages) > 10
    assert all(message.isascii() and message.isprintable() for message in messages)
    assert not any(set(message) & set('"\\') for message in messages)  # RFC 6750 §3: quoted-string


def test_verify_of_any_hostile_token_raises_invalid_token_error():
    signer = signer_at(NOW)

    for token in all_hostile_tokens():
        with pytest.raises(InvalidTokenError):
            signer.verify(token)


def mutate(rng, token):
    """Change, drop or repeat a few characters of a text, or bytes of bytes."""
    symbols = list(token)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(symbols))
        length = rng.choice([1, 1, 2, 9])
        kind = rng.randrange(4)
        if kind == 0:
            number = ord(symbols[at]) if isinstance(token, str) else symbols[at]
            flipped = number ^ 1 << rng.randrange(8)
            symbols[at] = chr(flipped) if isinstance(token, str) else flipped
        elif kind == 1:
            del symbols[at:at + length]
        elif kind == 2:
            symbols[at:at] = symbols[at:at + length]
        elif isinstance(token, str):
            symbols[at] = rng.choice("._-+/=AQgw \n\x00\xe9\u0661\ud800\udcff\U0001f600")
        else:
            symbols[at] = rng.randrange(256)
    return "".join(symbols) if isinstance(token, str) else bytes(symbols)


def outcome(function, token):
    """The claims, or the refusal; another error fails the test."""
    try:
        return function(token)
    except InvalidTokenError as error:
        return error


MUTABLE = signer_at(NOW).sign({"sub": "alice", "secret": CANARY, "odd": ">?>?~~"})


@pytest.mark.parametrize("original", [
    pytest.param(MUTABLE, id="str"),
    pytest.param(MUTABLE.encode(), id="bytes"),
    pytest.param(signed(b'{"sub":"alice","exp":%d}' % (NOW + 1), b'{"alg":"HS256"}').decode(),
                 id="other_header"),
])
def test_decode_and_verify_of_mutated_token_accept_the_original_alone(original):
    rng = random.Random(7)
    signer = signer_at(NOW)
    expected = signer.verify(original)
    errors = collections.Counter()
    messages = set()

    for _ in range(3000):
        token = mutate(rng, original)
        for function in (lambda token: decode(token, KEY, now=NOW), signer.verify):
            result = outcome(function, token)
            assert result == expected if token == original else isinstance(result, Exception)
            if isinstance(result, Exception):
                errors[type(result)] += 1
                messages.add(str(result))

    assert {DecodeError, InvalidSignatureError} <= set(errors)
    text = original if isinstance(original, str) else original.decode()
    assert not any(shares_text(message, text) for message in messages)
    assert len(messages) < 20  # sentences that are fixed, not made of the token
