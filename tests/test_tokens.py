"""Tokens: what is signed, what is accepted, and everything that must be rejected."""

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

import support
import wsgi_auth
from support import for_each
from wsgi_auth import (
    MAX_TOKEN_BYTES, DecodeError, ExpiredSignatureError, ImmatureSignatureError,
    InvalidAlgorithmError, InvalidAudienceError, InvalidClaimError, InvalidIssuerError,
    InvalidKeyError, InvalidSignatureError, InvalidTokenError, MissingRequiredClaimError,
    TokenSigner, decode, encode, parse_json_object,
)


KEY = support.KEY.encode()
OTHER_KEY = b"bravo-b6d767d2f8ed5d21a44b0e5886680cb9"
NOW = 1_700_000_000
ISSUER = "https://a.example"
HEADER = b'{"alg":"HS256","typ":"JWT"}'
PAYLOAD = b'{"sub":"alice"}'
CANARY = "canary-5e1f0b7c-in-the-claims"


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def sealed(header, payload, key=KEY):
    """A token of two encoded parts, with their correct signature."""
    signing_input = header + b"." + payload
    return signing_input + b"." + b64(hmac.digest(key, signing_input, "sha256"))


def signed(payload=PAYLOAD, header=HEADER, key=KEY):
    """A token of any bytes, with their correct signature."""
    return sealed(b64(header), b64(payload), key)


def signed_with(**header):
    return signed(header=json.dumps(header).encode())


def case(name, token, error, **policy):
    """A row of the tables of rejected tokens: `decode(token, KEY, **policy)` raises `error`."""
    return pytest.param(token, policy, error, id=name)


def rejection(token, **policy):
    with pytest.raises(InvalidTokenError) as caught:
        decode(token, KEY, **{"now": NOW, **policy})
    return caught.value


def shares_text(message, secret):
    """Whether the message contains eight consecutive characters of `secret`."""
    return any(message[i:i + 8] in secret for i in range(len(message) - 7))


def nested_list(depth):
    """A list of a list of a list …"""
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


def signer_at(now, **policy):
    return TokenSigner(KEY, clock=support.Clock(now), **policy)


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


def test_token_helper_reproduces_the_example_of_rfc7515():
    token = signed(RFC_PAYLOAD, RFC_HEADER, RFC_KEY)

    assert token == RFC_TOKEN.encode()  # so the tokens of the tables are correctly signed


@for_each("token", [RFC_TOKEN, RFC_TOKEN.encode()])
def test_decode_of_rfc7515_example_returns_its_claims(token):
    claims = decode(token, RFC_KEY, issuer="joe", now=1300819379)

    assert claims == {"iss": "joe", "exp": 1300819380, "http://example.com/is_root": True}


def test_decode_of_rfc7515_example_at_its_expiry_is_rejected():
    with pytest.raises(ExpiredSignatureError):
        decode(RFC_TOKEN, RFC_KEY, now=1300819380)


def test_encode_writes_compact_json_signed_as_in_rfc7515():
    token = encode({"sub": "alice"}, KEY)

    assert type(token) is str
    assert token.encode() == signed(b'{"sub":"alice"}', b'{"alg":"HS256","typ":"JWT"}')


# --- Round trips and other libraries ------------------------------------------------------------


@for_each("claims", [
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


@for_each("size", [32, 33, 63, 64, 65, 128, 1000])
def test_encode_with_key_of_any_length_signs_as_in_rfc2104(size):
    key = bytes(i % 251 for i in range(size))  # a key over 64 bytes is hashed first

    token = encode({"sub": "alice"}, key)

    assert token.encode() == signed(key=key)
    assert decode(token, key) == {"sub": "alice"}


def test_decode_with_text_key_accepts_a_token_signed_with_its_bytes():
    key = "ключ" * 4

    token = encode({"sub": "alice"}, key.encode())

    assert decode(token, key) == {"sub": "alice"}


def test_encode_with_additional_headers_writes_them():
    token = encode({"sub": "alice"}, KEY, headers={"typ": "at+jwt", "kid": "2026"})

    header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    assert header == {"alg": "HS256", "typ": "at+jwt", "kid": "2026"}
    assert decode(token, KEY) == {"sub": "alice"}


@for_each("headers, error", [
    ({"alg": "none"}, InvalidAlgorithmError),
    ({"alg": None}, InvalidAlgorithmError),
    ({"crit": ["exp"]}, DecodeError),
    ({"b64": False}, DecodeError),
    ({"typ": "JWE"}, DecodeError),
    ({"typ": None}, DecodeError),
    ({"kid": 123}, DecodeError),
    ({"kid": None}, DecodeError),
    ({"x": "\ud800"}, DecodeError),
    ({"x": math.nan}, DecodeError),
    ({1: "a", "1": "b"}, DecodeError),
    ({"x": nested_list(100)}, DecodeError),
    pytest.param({"x": nested_list(100_000)}, DecodeError, id="very_deep"),
    ({"x": "x" * MAX_TOKEN_BYTES}, DecodeError),
])
def test_encode_with_headers_that_decode_rejects_raises(headers, error):
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


def test_encoded_token_is_accepted_by_pyjwt():
    jwt = pytest.importorskip("jwt")
    claims = {"sub": "alice", "aud": ["a", "b"], "name": "Zoë"}

    token = encode(claims, KEY)

    assert jwt.decode(token, KEY, algorithms=["HS256"], audience="b") == claims


def test_tokens_are_exchanged_with_joserfc():
    joserfc_jwt = pytest.importorskip("joserfc.jwt")
    joserfc_jwk = pytest.importorskip("joserfc.jwk")

    token = encode({"sub": "alice"}, KEY)

    decoded = joserfc_jwt.decode(token, joserfc_jwk.OctKey.import_key(KEY), algorithms=["HS256"])
    assert decoded.claims == {"sub": "alice"}
    foreign_token = joserfc_jwt.encode(
        {"alg": "HS256"}, {"sub": "alice"}, joserfc_jwk.OctKey.import_key(KEY))
    assert decode(foreign_token, KEY) == {"sub": "alice"}


def test_tokens_are_exchanged_with_jsonwebtoken_and_jose_in_node():
    node, folder = shutil.which("node"), Path(__file__).parent / "benchmarks" / "node"
    if not node or not (folder / "node_modules" / "jose").exists():
        pytest.skip("there is no Node, or npm ci has not been run")
    signer = TokenSigner(KEY, issuer="https://issuer.example")
    token = signer.sign({"sub": "Zoë 山田", "scope": "read", "n": [1.5, None, {"a": True}]})

    result = subprocess.run(
        [node, "interop.mjs"], cwd=folder, input=json.dumps({"key": KEY.decode(), "token": token}),
        capture_output=True, check=True, encoding="utf-8", timeout=30)
    output = json.loads(result.stdout)

    claims = signer.verify(token)
    assert output["read"] == {"jose": claims, "jsonwebtoken": claims}
    assert {name: signer.verify(made) for name, made in output["made"].items()} == output["read"]


# --- Errors -------------------------------------------------------------------------------------


@for_each("error, base", [
    (InvalidTokenError, Exception),
    (DecodeError, InvalidTokenError),
    (InvalidSignatureError, DecodeError),  # as in PyJWT
    (InvalidAlgorithmError, InvalidTokenError),
    (ExpiredSignatureError, InvalidTokenError),
    (ImmatureSignatureError, InvalidTokenError),
    (InvalidClaimError, InvalidTokenError),
    (InvalidAudienceError, InvalidClaimError),
    (InvalidIssuerError, InvalidClaimError),
    (MissingRequiredClaimError, InvalidTokenError),
    (InvalidKeyError, ValueError),
])
def test_error_class_is_public_and_has_its_base(error, base):
    name = error.__name__

    assert error.__bases__ == (base,)
    assert getattr(wsgi_auth, name) is error
    assert name in wsgi_auth.__all__


@for_each("name", [
    "DecodeError", "ExpiredSignatureError", "ImmatureSignatureError", "InvalidAlgorithmError",
    "InvalidAudienceError", "InvalidIssuerError", "InvalidSignatureError", "InvalidTokenError",
    "MissingRequiredClaimError",
])
def test_error_name_is_one_of_pyjwt(name):
    jwt = pytest.importorskip("jwt")

    assert issubclass(getattr(jwt, name), jwt.InvalidTokenError)
    assert issubclass(getattr(wsgi_auth, name), InvalidTokenError)


@for_each("error", [
    MissingRequiredClaimError("exp"), DecodeError("Invalid JSON"), InvalidKeyError("Not a key"),
])
def test_pickled_error_keeps_its_type_and_message(error):
    copied = pickle.loads(pickle.dumps(error))

    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)


# --- Keys ---------------------------------------------------------------------------------------

PEM_BODY = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9"
SSH_BODY = "AAAAC3NzaC1lZDI1NTE5AAAAIGxlYWtlZC1rZXktbWF0ZXJpYWwtaW4tdGVzdHM"


def pem(label):
    return f"-----BEGIN {label}-----\n{PEM_BODY}\n-----END {label}-----\n"


BAD_KEYS = {
    "empty_text": "",
    "empty_bytes": b"",
    "short_text": "hunter2-hunter2",
    "31_bytes": b"0123456789abcdef0123456789abcde",
    "31_bytes_of_utf8": "☃" * 10 + "x",
    "short_in_list": ["hunter2-hunter2"],
    "second_is_short": [KEY, "hunter2-hunter2"],
    "empty_list": [],
    "empty_tuple": (),
    "list_in_list": [[KEY]],
    "second_is_none": [KEY, None],
    "none": None,
    "int": 12345678901234567890123456789012,
    "bool": True,
    "bytearray": bytearray(KEY),
    "jwk_dict": {"kty": "oct", "k": RFC_K},
    "set": {KEY.decode()},
    "object": object(),
    "lone_surrogate": "sekrit-" * 8 + "\ud800",
    "pem_public": pem("PUBLIC KEY"),
    "pem_private_bytes": pem("PRIVATE KEY").encode(),
    "pem_rsa": pem("RSA PRIVATE KEY"),
    "pem_ec": pem("EC PRIVATE KEY"),
    "pem_certificate": pem("CERTIFICATE"),
    "pem_openssh": pem("OPENSSH PRIVATE KEY"),
    "pem_after_comment": "\n # the key\n" + pem("PUBLIC KEY"),
    "second_is_pem": [KEY, pem("PUBLIC KEY")],
    "ssh2": f"---- BEGIN SSH2 PUBLIC KEY ----\n{SSH_BODY}\n",
    "putty": f"PuTTY-User-Key-File-3: ssh-ed25519\n{SSH_BODY}\n",
    "ssh_rsa": f"ssh-rsa {SSH_BODY} alice@example",
    "ssh_dss": f"ssh-dss {SSH_BODY}".encode(),
    "ssh_ed25519": f"ssh-ed25519 {SSH_BODY} alice@example",
    "ssh_ecdsa": f"ecdsa-sha2-nistp256 {SSH_BODY}",
    "ssh_sk": f"sk-ssh-ed25519@openssh.com {SSH_BODY}",
    "ssh_sk_ecdsa": f"sk-ecdsa-sha2-nistp256@openssh.com {SSH_BODY}",
    "ssh_authorized_keys_options": f'from="10.0.0.0/8" ssh-ed25519 {SSH_BODY}',
    "ssh_xmss": f"ssh-xmss@openssh.com {SSH_BODY}",
    "pem_with_tab": f"-----BEGIN\tPUBLIC KEY-----\n{SSH_BODY}\n",
    "pem_utf16": f"-----BEGIN PUBLIC KEY-----\n{SSH_BODY}\n".encode("utf-16"),
    "jwk_array": json.dumps([{"kty": "oct", "k": RFC_K}]),
    "jwk": json.dumps({"kty": "oct", "k": RFC_K}),
    "jwk_bytes": json.dumps({"kty": "oct", "k": RFC_K}).encode(),
    "jwk_set": "\n" + json.dumps({"keys": [{"kty": "oct", "k": RFC_K}]}, indent=2) + "\n",
}


@pytest.mark.parametrize("use", [
    lambda key: encode({}, key), lambda key: decode(signed(), key), TokenSigner,
], ids=["encode", "decode", "signer"])
@for_each("key", BAD_KEYS)
def test_unusable_key_is_rejected_with_advice_and_without_any_part_of_it(use, key):
    with pytest.raises(InvalidKeyError) as caught:
        use(key)

    message = str(caught.value)
    assert "32" in message and "secrets.token_hex(32)" in message
    for part in key if isinstance(key, (list, tuple, set)) else [key]:
        text = part.decode("latin-1") if isinstance(part, (bytes, bytearray)) else str(part)
        assert not shares_text(message, text)


def test_short_key_is_rejected_with_its_length():
    with pytest.raises(InvalidKeyError, match="31 bytes"):
        TokenSigner("☃" * 10 + "x")


@for_each("key", [
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
def test_usable_key_signs_and_verifies(key):
    signer = TokenSigner(key)

    claims = signer.verify(signer.sign({"sub": "alice"}))

    assert claims["sub"] == "alice"


def test_decode_of_malformed_token_with_unusable_key_raises_invalid_key_error():
    with pytest.raises(InvalidKeyError):  # the operator's mistake matters more than the client's
        decode("junk", "short")


# --- Several keys -------------------------------------------------------------------------------
@pytest.mark.parametrize("sign", [
    lambda keys: TokenSigner(keys).sign({"sub": "alice"}),
    lambda keys: encode({"sub": "alice"}, keys),
], ids=["signer", "encode"])
def test_first_of_several_keys_signs(sign):
    token = sign([KEY, OTHER_KEY])

    assert decode(token, KEY)["sub"] == "alice"
    with pytest.raises(InvalidSignatureError):
        decode(token, OTHER_KEY)


@for_each("key", [KEY, OTHER_KEY])
def test_each_of_several_keys_verifies(key):
    token = signed(b'{"sub":"alice","exp":1700000001}', key=key)

    verified = TokenSigner([KEY, OTHER_KEY], clock=support.Clock(NOW)).verify(token)
    decoded = decode(token, (KEY, OTHER_KEY), now=NOW)

    assert verified == decoded == {"sub": "alice", "exp": 1700000001}


def test_signer_after_key_is_pruned_rejects_its_tokens():
    token = TokenSigner(OTHER_KEY).sign({"sub": "alice"})

    with pytest.raises(InvalidSignatureError):
        TokenSigner(KEY).verify(token)


# --- TokenSigner --------------------------------------------------------------------------------


def test_sign_with_issuer_and_audience_adds_all_claims():
    signer = signer_at(NOW + 0.9, issuer=ISSUER, audience="api", lifetime=60)

    claims = decode(signer.sign({"sub": "alice"}), KEY, audience="api", now=NOW + 1)

    jti = claims.pop("jti")
    assert claims == {"sub": "alice", "iat": NOW, "exp": NOW + 60, "iss": ISSUER, "aud": "api"}
    assert type(jti) is str and len(jti) >= 22  # 128 bits


def test_sign_without_policy_adds_only_times_and_jti():
    claims = decode(signer_at(NOW).sign({"sub": "alice"}), KEY, now=NOW)

    assert set(claims) == {"sub", "iat", "exp", "jti"}
    assert claims["exp"] == NOW + 3600


def test_sign_twice_makes_different_jti():
    signer = signer_at(NOW)

    tokens = {signer.sign({"sub": "alice"}) for _ in range(100)}

    assert len({signer.verify(token)["jti"] for token in tokens}) == 100


@for_each("name, value", [
    ("iat", NOW - 5), ("exp", NOW + 5), ("jti", "mine"), ("iss", ISSUER),
    ("aud", ["api", "other"]),
])
def test_sign_with_claim_given_keeps_it(name, value):
    signer = signer_at(NOW, issuer=ISSUER, audience="api")

    token = signer.sign({"sub": "alice", name: value})

    assert decode(token, KEY, audience="api", now=NOW)[name] == value


def test_sign_does_not_change_the_claims_of_the_caller():
    claims = {"sub": "alice"}

    signer_at(NOW).sign(claims)

    assert claims == {"sub": "alice"}


def test_signer_with_list_audience_verifies_its_own_tokens():
    signer = signer_at(NOW, audience=["api", "web"])

    claims = signer.verify(signer.sign({"sub": "alice"}))

    assert claims["aud"] == ["api", "web"]


def test_signer_without_clock_uses_the_current_time():
    before = int(time.time())

    claims = TokenSigner(KEY).verify(TokenSigner(KEY).sign({"sub": "alice"}))

    assert before <= claims["iat"] <= time.time()
    assert claims["exp"] == claims["iat"] + 3600


@for_each("now", [NOW + 3600 + 9, NOW - 10])
def test_verify_in_the_outermost_second_of_the_lifetime_and_leeway_accepts(now):
    token = signer_at(NOW).sign({"sub": "alice"})

    claims = signer_at(now, leeway=10).verify(token)

    assert claims["sub"] == "alice"


@for_each("now, policy, error", [
    pytest.param(NOW + 3600 + 10, {}, ExpiredSignatureError, id="expired"),
    pytest.param(NOW - 11, {}, ImmatureSignatureError, id="immature"),
    pytest.param(NOW, {"issuer": "https://b.example"}, InvalidIssuerError, id="other_issuer"),
    pytest.param(NOW, {"audience": "web"}, InvalidAudienceError, id="other_audience"),
    pytest.param(NOW, {"audience": None}, InvalidAudienceError, id="no_audience"),
])
def test_verify_of_token_that_violates_the_policy_raises(now, policy, error):
    expected = {"issuer": ISSUER, "audience": "api", "leeway": 10}
    token = signer_at(NOW, **expected).sign({"sub": "alice"})

    with pytest.raises(error):
        signer_at(now, **{**expected, **policy}).verify(token)


@for_each("payload, policy, missing", [
    pytest.param(b'{"exp":1700000001}', {}, "sub", id="no_sub"),
    pytest.param(b'{"sub":"alice"}', {}, "exp", id="no_exp"),
    pytest.param(b"{}", {}, "exp", id="neither"),
    pytest.param(b'{"sub":"alice","exp":1700000001}', {"issuer": ISSUER}, "iss", id="no_iss"),
    pytest.param(b'{"sub":"alice","exp":1700000001}', {"audience": "api"}, "aud", id="no_aud"),
])
def test_verify_of_token_without_required_claim_names_it(payload, policy, missing):
    with pytest.raises(MissingRequiredClaimError) as caught:
        signer_at(NOW, **policy).verify(signed(payload))

    assert caught.value.claim == missing
    assert str(caught.value) == f"Token is missing the {missing} claim"


@for_each("claims, policy", [
    ({}, {}), ({"sub": 1}, {}), ({"sub": None}, {}), ({"sub": "a", "jti": 7}, {}),
    ({"sub": "a", "exp": "1"}, {}), ({"sub": "a", "exp": True}, {}),
    ({"sub": "a", "exp": None}, {}), ({"sub": "a", "nbf": "now"}, {}),
    ({"sub": "a", "iat": [NOW]}, {}), ({"sub": "a", "iss": 1}, {}),
    ({"sub": "a", "iss": "https://b.example"}, {"issuer": ISSUER}),
    ({"sub": "a", "aud": "api"}, {}), ({"sub": "a", "aud": 1}, {"audience": "api"}),
    ({"sub": "a", "aud": "web"}, {"audience": "api"}), ({"sub": "a"}, {"audience": []}),
    pytest.param({"sub": "a", "x": "x" * 12_200}, {}, id="long"),
    pytest.param({"sub": "a", 1: "b", "1": "c"}, {}, id="duplicate"),
    pytest.param({"sub": "a", "x": nested_list(100)}, {}, id="deep"),
    pytest.param({"sub": "a", "x": nested_list(100_000)}, {}, id="very_deep"),
])
def test_sign_of_claims_that_verify_rejects_at_any_time_raises_value_error(claims, policy):
    signer = signer_at(NOW, **policy)

    with pytest.raises(ValueError) as caught:
        signer.sign(claims)

    assert len(str(caught.value)) < 100


@for_each("claims", [
    {"exp": NOW - 10}, {"exp": 0}, {"exp": -10**400}, {"nbf": NOW + 99}, {"iat": 10**400},
])
def test_sign_of_claims_for_another_time_is_accepted(claims):
    signer = signer_at(NOW)

    token = signer.sign({"sub": "alice", **claims})

    with pytest.raises((ExpiredSignatureError, ImmatureSignatureError)):
        signer.verify(token)


def test_sign_of_any_mapping_is_accepted():
    class Name(str):
        pass

    claims = collections.ChainMap({"sub": Name("alice")}, {"roles": ("a",)})

    assert signer_at(NOW).verify(signer_at(NOW).sign(claims))["sub"] == "alice"


def test_signer_has_ten_seconds_of_leeway_and_decode_none():
    token = signer_at(NOW).sign({"sub": "alice"})

    assert signer_at(NOW - 10).verify(token) == signer_at(NOW + 3609).verify(token)
    for now, error in [(NOW - 11, ImmatureSignatureError), (NOW + 3610, ExpiredSignatureError)]:
        with pytest.raises(error):
            signer_at(now).verify(token)
    for now, error in [(NOW - 1, ImmatureSignatureError), (NOW + 3600, ExpiredSignatureError)]:
        with pytest.raises(error):
            decode(token, KEY, now=now)


WRONG_NAMES = [1, True, 1.5, b"api", ["api", 1], [None], [b"api"], ...]
WRONG_NUMBERS = ["1", None, True, [1], b"1", ...]


@for_each("policy", [
    *({"audience": value} for value in WRONG_NAMES), *({"issuer": value} for value in WRONG_NAMES),
    {"issuer": [ISSUER]}, *({"leeway": value} for value in WRONG_NUMBERS),
    *({"lifetime": value} for value in WRONG_NUMBERS), {"clock": NOW}, {"clock": None},
])
def test_signer_with_argument_of_wrong_type_raises_type_error_at_once(policy):
    with pytest.raises(TypeError):
        TokenSigner(KEY, **policy)


@for_each("policy", [
    *({"audience": value} for value in WRONG_NAMES), *({"issuer": value} for value in WRONG_NAMES),
    *({"leeway": value} for value in WRONG_NUMBERS),
    *({"now": value} for value in WRONG_NUMBERS if value is not None),
    *({"require": value} for value in [*WRONG_NAMES, "exp"]),
])
@for_each("token", ["junk", signed()])
def test_decode_with_argument_of_wrong_type_raises_type_error_for_any_token(token, policy):
    with pytest.raises(TypeError):
        decode(token, KEY, **policy)


@for_each("leeway", [10**400, -10**400])
def test_leeway_that_is_larger_than_every_float_is_refused_at_once(leeway):
    with pytest.raises(OverflowError):
        TokenSigner(KEY, leeway=leeway)
    with pytest.raises(OverflowError):
        decode("junk", KEY, leeway=leeway)


@for_each("names", [
    ["web", "api"], ("api",), {"api"}, frozenset(["api"]), {"api": 1}, iter(["api"]),
    (name for name in ["web", "api"]),
])
def test_audience_in_any_collection_is_accepted(names):
    signer = signer_at(NOW, audience=names)

    token = signer.sign({"sub": "alice"})

    assert "api" in signer.verify(token)["aud"]
    assert signer.verify(token) == decode(token, KEY, audience=iter(["api"]), now=NOW)


@for_each("headers", [5, "kid", ["kid"], [("kid", "1")], {"x": b"1"}])
def test_encode_with_headers_of_wrong_type_raises_type_error(headers):
    with pytest.raises(TypeError):
        encode({}, KEY, headers=headers)


# --- Rejected: malformed tokens and base64url ---------------------------------------------------

TOKEN = encode({"sub": "alice", "secret": CANARY}, KEY)

SHAPES = {
    "empty": ("", DecodeError),
    "one_dot": (".", DecodeError),
    "two_dots": ("..", DecodeError),
    "three_dots": ("...", DecodeError),
    "one_part": ("a", DecodeError),
    "header_alone": (TOKEN.split(".")[0], DecodeError),
    "no_signature": (TOKEN.rpartition(".")[0], DecodeError),
    "no_header": (TOKEN.partition(".")[2], DecodeError),
    "empty_signature": (TOKEN.rpartition(".")[0] + ".", InvalidSignatureError),
    "empty_header": ("." + TOKEN.partition(".")[2], DecodeError),
    "dot_before": ("." + TOKEN, DecodeError),
    "dot_after": (TOKEN + ".", InvalidSignatureError),
    "twice": (TOKEN + "." + TOKEN, InvalidSignatureError),
    "four_parts": (TOKEN + "." + TOKEN.split(".")[2], InvalidSignatureError),
    "four_parts_signed": (
        sealed(b64(HEADER), b64(PAYLOAD) + b"." + b64(PAYLOAD)).decode(), DecodeError),
    "empty_part_signed": (sealed(b64(HEADER), b"." + b64(PAYLOAD)).decode(), DecodeError),
    "dot_in_payload_signed": (sealed(b64(HEADER), b64(PAYLOAD) + b".").decode(), DecodeError),
    "empty_header_signed": (sealed(b"", b64(PAYLOAD)).decode(), DecodeError),
    "empty_payload_signed": (sealed(b64(HEADER), b"").decode(), DecodeError),
    "jwe": (
        b64(b'{"alg":"dir","enc":"A256GCM"}').decode() + "..AAAA.AAAA.AAAA", InvalidAlgorithmError),
    "json_serialization": (
        json.dumps({"protected": b64(HEADER).decode(), "payload": b64(PAYLOAD).decode()}),
        DecodeError),
    "scheme_before": ("Bearer " + TOKEN, DecodeError),
    "space_before": (" " + TOKEN, DecodeError),
    "newline_after": (TOKEN + "\n", InvalidSignatureError),
    "nul_after": (TOKEN + "\x00", InvalidSignatureError),
    "quoted": ('"' + TOKEN + '"', DecodeError),
    "other_case": (TOKEN.swapcase(), DecodeError),
    "colons": (TOKEN.replace(".", ":"), DecodeError),
    "ideographic_full_stops": (TOKEN.replace(".", "\u3002"), DecodeError),
    "fullwidth": ("\uff45" + TOKEN[1:], DecodeError),
    "arabic_digit": (TOKEN[:-1] + "\u0661", InvalidSignatureError),
    "latin1": (TOKEN + "\u00e9", InvalidSignatureError),
    "bom": ("\ufeff" + TOKEN, DecodeError),
    "high_surrogate": (TOKEN + "\ud800", InvalidSignatureError),
    "surrogate_escape": (TOKEN + "\udcff", InvalidSignatureError),
    "surrogates": ("\udcff" * 40, DecodeError),
    "braces": ("{}.{}.{}", DecodeError),
    "percent": ("%s.%s.%s", DecodeError),
    "nuls": ("\x00" * 100, DecodeError),
    "dots": ("." * MAX_TOKEN_BYTES, DecodeError),
    "letters": ("A" * MAX_TOKEN_BYTES, DecodeError),
    "too_long": ("A" * (MAX_TOKEN_BYTES + 1), DecodeError),
    "emoji": ("\U0001f600" * MAX_TOKEN_BYTES, DecodeError),
    "million_dots": ("." * 1_000_000, DecodeError),
}

# Each of the three parts contains "-" and "_", and its last character has spare bits.
ODD_HEADER = b64(b'{"alg":"HS256","a":">?>?>?"}')
ODD_PAYLOAD = b64(b'{"s":"%s"}' % (b">?" * 10))
ODD_TOKEN = sealed(ODD_HEADER, ODD_PAYLOAD)
ODD_INPUT, _, ODD_SIGNATURE = ODD_TOKEN.rpartition(b".")

SPELLINGS = {
    "padded": lambda text: text + b"=" * (-len(text) % 4),
    "one_pad": lambda text: text + b"=",
    "four_pads": lambda text: text + b"====",
    "pad_before": lambda text: b"=" + text,
    "pad_inside": lambda text: text[:4] + b"=" + text[4:],
    "space_after": lambda text: text + b" ",
    "space_before": lambda text: b" " + text,
    "space_inside": lambda text: text[:4] + b" " + text[4:],
    "newline_after": lambda text: text + b"\n",
    "newline_inside": lambda text: text[:8] + b"\r\n" + text[8:],
    "tab_after": lambda text: text + b"\t",
    "nul_after": lambda text: text + b"\x00",
    "other_character_after": lambda text: text + b"!",
    "other_characters_inside": lambda text: text[:4] + b"!!!!" + text[4:],
    "stray_bits": lambda text: text[:-1] + bytes([text[-1] + 1]),
    "one_beyond_a_quantum": lambda text: text + b"A" * (-(len(text) - 1) % 4),
    "base64_alphabet": lambda text: text.translate(bytes.maketrans(b"-_", b"+/")),
    "plus_for_minus": lambda text: text.replace(b"-", b"+"),
    "slash_for_underscore": lambda text: text.replace(b"_", b"/"),
    "imap_alphabet": lambda text: text.replace(b"_", b","),
    "percent_encoded": lambda text: text.replace(b"-", b"%2D"),
    "utf8_after": lambda text: text + b"\xc3\xa9",
    "high_bit": lambda text: bytes([text[0] | 0x80]) + text[1:],
    "bom": lambda text: b"\xef\xbb\xbf" + text,
}


def signed_of_length(size):
    payload_size = size - len(b64(HEADER)) - 2 - 43  # in base64url
    token = signed(b'{"x":"%s"}' % (b"x" * (payload_size * 3 // 4 - len(b'{"x":""}'))))
    assert len(token) == size
    return token


MALFORMED = [
    *(case(f"type_{type(token).__name__}", token, DecodeError) for token in [
        None, True, 0, 1.5, [], {}, (), [TOKEN], {"token": TOKEN}, bytearray(TOKEN.encode()),
        memoryview(TOKEN.encode()), TOKEN.split("."), object(), bytes]),
    *(case(name, token, error) for name, (token, error) in SHAPES.items()),
    *(case(f"{name}_bytes", token.encode(), error)
      for name, (token, error) in SHAPES.items() if token.isascii()),
    *(case(f"{size}_bytes_as_{kind}", convert(signed_of_length(size)), DecodeError)
      for size in (MAX_TOKEN_BYTES + 1, 2 * MAX_TOKEN_BYTES)
      for kind, convert in [("bytes", bytes), ("str", bytes.decode)]),
    *(case(f"header_{name}", sealed(spell(ODD_HEADER), ODD_PAYLOAD), DecodeError)
      for name, spell in SPELLINGS.items()),
    *(case(f"payload_{name}", sealed(ODD_HEADER, spell(ODD_PAYLOAD)), DecodeError)
      for name, spell in SPELLINGS.items()),
    *(case(f"signature_{name}", ODD_INPUT + b"." + spell(ODD_SIGNATURE), InvalidSignatureError)
      for name, spell in SPELLINGS.items()),
]


@for_each("token, policy, error", MALFORMED)
def test_decode_of_malformed_token_is_rejected(token, policy, error):
    assert type(rejection(token, **policy)) is error


def test_each_part_of_the_odd_token_can_be_spelled_otherwise():
    parts = ODD_TOKEN.split(b".")

    assert decode(ODD_TOKEN, KEY) == {"s": ">?" * 10}
    assert all(b"-" in part and b"_" in part and len(part) % 4 for part in parts)
    assert all(spell(part) != part for spell in SPELLINGS.values() for part in parts)


def test_decode_of_token_of_the_maximum_size_is_accepted():
    token = signed_of_length(MAX_TOKEN_BYTES)

    assert set(decode(token, KEY)) == {"x"}
    assert MAX_TOKEN_BYTES == 16 * 1024


# --- Rejected: headers, all correctly signed unless the name says otherwise ---------------------

ALGORITHMS = [
    None, "", "none", "None", "NONE", "nOnE", "hs256", "Hs256", "HS256 ", " HS256", "HS256\x00",
    "HS-256", "\uff28S256", "HS384", "HS512", "HS1", "RS256", "PS256", "ES256", "EdDSA", "dir",
    "A256GCMKW", "HMAC-SHA256", ["HS256"], {"alg": "HS256"}, ["HS256", "none"], True, 256, 0,
    CANARY, [CANARY],
]
TYPES = [
    "", None, True, 1, [], ["JWT"], {}, "JWE", "JWS", "JOSE", "JOSE+JSON", "JWT ", " JWT", "JWT\n",
    "JWT\x00", "id+jwt", "dpop+jwt", "secevent+jwt", "logout+jwt", "at+", "+jwt", "application/",
    "application/application/jwt", "text/jwt", "application/jwt; charset=utf-8", "jwt,at+jwt",
    "\uff2a\uff37\uff34", "at+jwt+at", CANARY,
]
EXTENSIONS = [
    {"crit": ["exp"]}, {"crit": ["b64"], "b64": False}, {"crit": []}, {"crit": None},
    {"crit": CANARY}, {"b64": False}, {"b64": True}, {"b64": None},
    {"kid": None}, {"kid": 1}, {"kid": True}, {"kid": ["1"]}, {"kid": {CANARY: 1}},
]
KEY_HEADERS = {
    "jwk": {"jwk": {"kty": "oct", "k": b64(OTHER_KEY).decode()}},
    "jku": {"jku": "https://attacker.example/jwks.json"},
    "x5u": {"x5u": "https://attacker.example/cert.pem"},
    "x5c": {"x5c": [b64(OTHER_KEY).decode()]},
    "kid_file": {"kid": "/dev/null"},
    "kid_sql": {"kid": "' UNION SELECT 'key"},
    "kid_empty": {"kid": ""},
    "odd": {"jwk": None, "x5t": [], "cty": "JWT", "zip": "DEF"},
}
HS512_INPUT = b64(b'{"alg":"HS512"}') + b"." + b64(PAYLOAD)

JUNK_JSON = {
    "empty": b"",
    "white_space": b" ",
    "null": b"null",
    "true": b"true",
    "number": b"1",
    "string": b'"sub"',
    "array": b"[]",
    "array_of_object": b'[{"sub":"alice"}]',
    "array_of_pairs": b'[["sub","alice"]]',
    "two_objects": b"{}{}",
    "two_lines": b'{"a":1}\n{"a":1}',
    "trailing_comma_outside": b"{},",
    "trailing_comma": b'{"a":1,}',
    "unclosed": b'{"a":1',
    "closed_twice": b'{"a":1}}',
    "no_value": b'{"a":}',
    "no_colon": b'{"a"}',
    "no_name": b'{:1}',
    "bare_name": b"{a:1}",
    "number_as_name": b"{1:1}",
    "single_quotes": b"{'a':1}",
    "comment": b'{"a":1/*c*/}',
    "comment_after": b'{"a":1}//',
    "nul_after": b"{}\x00",
    "nul_before": b"\x00{}",
    "bom": b"\xef\xbb\xbf{}",
    "no_break_space": "\u00a0{}".encode(),
    "vertical_tab": b"\x0b{}\x0c",
    "line_separator": "{}\u2028".encode(),
    "not_utf8": b"\xff\xfe{}",
    "utf16": '{"a":1}'.encode("utf-16"),
    "utf16_no_bom": '{"a":1}'.encode("utf-16-le"),
    "utf32": '{"a":1}'.encode("utf-32-be"),
    "latin1": b'{"a":"\xe9"}',
    "overlong_utf8": b'{"a":"\xc0\xaf"}',
    "surrogate_in_utf8": b'{"a":"\xed\xa0\x80"}',
    "beyond_unicode": b'{"a":"\xf4\x90\x80\x80"}',
    "truncated_utf8": b'{"a":"\xe2\x98',
    "high_surrogate": b'{"a":"\\ud800"}',
    "low_surrogate": b'{"a":"\\udc00"}',
    "surrogates_reversed": b'{"a":"\\udc00\\ud800"}',
    "surrogate_in_name": b'{"\\ud800":1}',
    "surrogate_nested": b'{"a":{"b":["x\\ud83d"]}}',
    "bad_unicode_escape": b'{"a":"\\u12g4"}',
    "bad_escape": b'{"a":"\\x41"}',
    "newline_in_string": b'{"a":"\n"}',
    "nul_in_string": b'{"a":"\x00"}',
    "duplicate": b'{"a":1,"a":2}',
    "duplicate_same_value": b'{"a":1,"a":1}',
    "duplicate_escaped": b'{"a":1,"\\u0061":2}',
    "duplicate_empty": b'{"":1,"":2}',
    "duplicate_apart": b'{"a":1,"b":2,"c":3,"b":4}',
    "duplicate_nested": b'{"a":{"b":1,"b":2}}',
    "duplicate_in_array": b'{"a":[{"b":1},{"b":1,"b":2}]}',
    "duplicate_deep": b'{"a":{"b":{"c":{"d":1,"d":1}}}}',
    "duplicate_both": b'{"a":{"b":1,"b":2},"a":3}',
    "duplicate_object": b'{"a":1,"a":{}}',
    "duplicate_beside_url": b'{"a":"x://y","a":1}',
    "duplicate_nested_beside_url": b'{"a":"x://y","b":{"c":1,"c":2}}',
    "url_without_quotes": b'{"a"://"b"}',
    "nan": b'{"a":NaN}',
    "infinity": b'{"a":Infinity}',
    "minus_infinity": b'{"a":-Infinity}',
    "nan_nested": b'{"a":[1,[NaN]]}',
    "nan_lower_case": b'{"a":nan}',
    "minus_nan": b'{"a":-NaN}',
    "overflow": b'{"a":1e400}',
    "overflow_negative": b'{"a":-1e400}',
    "overflow_exponent": b'{"a":1.0E+99999999999}',
    "overflow_nested": b'{"a":[{"b":1e309}]}',
    "overflow_digits": b'{"a":1%s.0}' % (b"0" * 400),
    "integer_of_5001_digits": b'{"a":1%s}' % (b"0" * 5000),
    "integer_of_12000_digits": b'{"a":-%s}' % (b"9" * 12_000),
    "leading_zero": b'{"a":01}',
    "plus_sign": b'{"a":+1}',
    "no_integer_part": b'{"a":.5}',
    "no_fraction": b'{"a":1.}',
    "hexadecimal": b'{"a":0x10}',
    "underscore": b'{"a":1_000}',
    "arabic_digit": '{"a":\u0661}'.encode(),
    "array_of_101_levels": b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
    "object_of_101_levels": b'{"a":' * 101 + b"1" + b"}" * 101,
    "deep_array": b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep_object": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "deep_array_unclosed": b'{"a":' + b"[" * 12_000,
    "deep_object_unclosed": b'{"a":' * 2400,
    "deep_array_alone": b"[" * 12_000,
}
JUNK_AFTER_HS256 = {
    "duplicate": b'"a":1,"a":1',
    "duplicate_alg": b'"alg":"HS256"',
    "duplicate_alg_escaped": b'"\\u0061lg":"none"',
    "duplicate_nested": b'"a":{"b":1,"b":1}',
    "nan": b'"a":NaN',
    "overflow": b'"a":1e400',
    "lone_surrogate": b'"a":"\\ud800"',
    "deep_array": b'"a":' + b"[" * 5000 + b"]" * 5000,
    "deep_object": b'"a":' + b'{"a":' * 1900 + b"1" + b"}" * 1900,
}
HEADERS = [
    case("alg_missing", signed_with(typ="JWT"), InvalidAlgorithmError),
    *(case(f"alg_{alg!a}", signed_with(alg=alg, typ="JWT"), InvalidAlgorithmError)
      for alg in ALGORITHMS),
    *(case(f"alg_{alg}_without_signature",
           b64(b'{"alg":"%s"}' % alg.encode()) + b"." + b64(PAYLOAD) + b".", InvalidAlgorithmError)
      for alg in ["none", "None", "HS512", "RS256"]),
    case("hs512_signature", HS512_INPUT + b"." + b64(hmac.digest(KEY, HS512_INPUT, "sha512")),
         InvalidAlgorithmError),
    *(case(f"typ_{typ!a}", signed_with(alg="HS256", typ=typ), DecodeError) for typ in TYPES),
    *(case(f"extension_{extension}", signed_with(alg="HS256", **extension), DecodeError)
      for extension in EXTENSIONS),
    *(case(f"{name}_with_{kind}_key", signed(
        header=json.dumps({"alg": "HS256", **header}).encode(), key=key), InvalidSignatureError)
      for name, header in KEY_HEADERS.items()
      for kind, key in [("its", OTHER_KEY), ("empty", b""), ("zero", bytes(32))]),
    *(case(f"json_{name}", signed(header=header), DecodeError)
      for name, header in JUNK_JSON.items()),
    *(case(f"hs256_and_{name}", signed(header=b'{"alg":"HS256",%s}' % junk), DecodeError)
      for name, junk in JUNK_AFTER_HS256.items()),
]


@for_each("token, policy, error", HEADERS)
def test_decode_of_token_with_invalid_header_is_rejected(token, policy, error):
    assert type(rejection(token, **policy)) is error


@for_each("header", [
    *(pytest.param({"typ": typ}, id=typ) for typ in [
        "JWT", "jwt", "jWt", "at+jwt", "AT+JWT", "At+Jwt", "application/jwt", "application/at+jwt",
        "APPLICATION/JWT", "Application/AT+jwt"]),
    pytest.param({}, id="no_typ"),
    *(pytest.param(header, id=name) for name, header in KEY_HEADERS.items()),
])
def test_decode_of_token_with_valid_header_accepts_our_key(header):
    token = signed_with(alg="HS256", **header)

    assert decode(token, KEY) == {"sub": "alice"}


@for_each("header", [
    b' {"alg" : "HS256"}\r\n', b'{"typ":"JWT","alg":"HS256"}', b'{"alg":"\\u0048S256"}',
    b'{"alg":"HS256","nested":{"alg":"none"}}', '{"alg":"HS256","kid":"\u2603:"}'.encode(),
])
def test_decode_of_token_with_unusual_header_text_is_accepted(header):
    assert decode(signed(header=header), KEY) == {"sub": "alice"}


# --- Rejected: JSON payloads --------------------------------------------------------------------

PAYLOADS = [
    *(case(name, signed(payload), DecodeError) for name, payload in JUNK_JSON.items()),
    *(case(f"{name}_{number}", signed(f'{{"{name}":{number}}}'.encode()), DecodeError)
      for name in ["exp", "nbf", "iat"]
      for number in ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"]),
]

LEGAL_JSON = {
    "empty": (b"{}", {}),
    "white_space": (b' \t\r\n{ "a" :\n1\t,"b": [ ] }\r\n ', {"a": 1, "b": []}),
    "same_name_apart": (b'{"a":{"b":{"a":1}},"b":[{"a":1},{"a":2}]}',
                        {"a": {"b": {"a": 1}}, "b": [{"a": 1}, {"a": 2}]}),
    "colons_in_strings": (b'{"a":"b:c","d":":::"}', {"a": "b:c", "d": ":::"}),
    "colon_in_name": (b'{"a:b":{}}', {"a:b": {}}),
    "urls": (b'{"a":"://","b":"x://y:80/"}', {"a": "://", "b": "x://y:80/"}),
    "empty_objects": (b'{"a":{},"b":[{}]}', {"a": {}, "b": [{}]}),
    "escapes": (b'{"a":"\\ud83d\\ude00\\u0000"}', {"a": "\U0001f600\0"}),
    "utf8": ('{"a":"\ufeff\U0001f600"}'.encode(), {"a": "\ufeff\U0001f600"}),
    "nan_as_text": (b'{"a":"NaN","b":"Infinity"}', {"a": "NaN", "b": "Infinity"}),
    "numbers": (b'{"a":1e308,"b":1e-400,"c":-0}', {"a": 1e308, "b": 0.0, "c": 0}),
    "integer_of_401_digits": (b'{"a":1%s}' % (b"0" * 400), {"a": 10**400}),
    "ten_levels": (b'{"a":[[[[[[[[[[{"b":1}]]]]]]]]]]}', {"a": [[[[[[[[[[{"b": 1}]]]]]]]]]]}),
    "array_of_100_levels": (
        b'{"a":' + b"[" * 99 + b"]" * 99 + b"}", {"a": json.loads("[" * 99 + "]" * 99)}),
    "object_of_100_levels": (
        b'{"a":' * 100 + b"1" + b"}" * 100, json.loads('{"a":' * 100 + "1" + "}" * 100)),
    "wide": (b'{"a":[' + b"{}," * 2000 + b"[]]}", {"a": [{}] * 2000 + [[]]}),
    "brackets_in_string": (b'{"a":"\\"%s"}' % (b"[{" * 3000), {"a": '"' + "[{" * 3000}),
}


@for_each("token, policy, error", PAYLOADS)
def test_decode_of_token_with_malformed_payload_is_rejected(token, policy, error):
    assert type(rejection(token, **policy)) is error


@for_each("data", [
    *(pytest.param(data, id=name) for name, data in JUNK_JSON.items()),
    *(pytest.param(b'{"a":' + opening * (size // len(opening)), id=f"{name}_{size}")
      for size in [12_000, 65_536]
      for name, opening in [("array", b"["), ("object", b'{"":'), ("both", b'[{"":')]),
])
def test_parse_json_object_of_malformed_json_raises_decode_error(data):
    with pytest.raises(DecodeError) as caught:
        parse_json_object(data)

    assert type(caught.value) is DecodeError
    assert len(str(caught.value)) < 40


@for_each("data, value", LEGAL_JSON)
def test_legal_json_is_returned_as_object_and_as_claims(data, value):
    assert parse_json_object(data) == value
    assert decode(signed(data), KEY, now=NOW) == value


DEEP_HEADER_IN_SMALL_THREAD = """
import threading, wsgi_auth

def verify():
    try:
        wsgi_auth.decode({token!r}, "k" * 32)
    except wsgi_auth.InvalidTokenError:
        print("rejected")

threading.stack_size(512 * 1024)  # musl: 128 KiB; python:alpine: 1 MiB
thread = threading.Thread(target=verify)
thread.start()
thread.join()
"""


def test_decode_of_deep_header_in_thread_with_small_stack_is_rejected():
    token = b64(b'{"a":' + b"[" * 12_000) + b".e30.AAAA"  # unsigned: anyone could send it
    script = DEEP_HEADER_IN_SMALL_THREAD.format(token=token)

    result = subprocess.run(
        [sys.executable, "-c", script], cwd=os.path.dirname(wsgi_auth.__file__),
        stdout=subprocess.PIPE, timeout=60)

    assert (result.returncode, result.stdout.strip()) == (0, b"rejected")


# --- Rejected: times ----------------------------------------------------------------------------

BOUNDARIES = [
    # claim, leeway, rejected at, the nearest time at which it is accepted, error
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
NO_NUMBERS = [
    None, True, False, "", str(NOW + 9), "NaN", [], [NOW + 9], {}, {"$date": NOW + 9},
    [CANARY], {CANARY: 1},
]
HUGE = "1" + "0" * 400  # larger than every float
TIMES = [
    *(case(f"{name}_{value!r}_leeway_{leeway}_at_{now - NOW}", encode({name: value}, KEY), error,
           now=now, leeway=leeway)
      for name, leeway, now, _, error in BOUNDARIES for value in (NOW, float(NOW))),
    *(case(f"{name}_{value!r}", encode({name: value}, KEY), InvalidClaimError)
      for name in ["exp", "nbf", "iat"] for value in NO_NUMBERS),
    *(case(f"exp_{name}", signed(b'{"exp":%s}' % number.encode()), ExpiredSignatureError)
      for name, number in [
          ("0", "0"), ("-0", "-0"), ("-1", "-1"), ("1e-400", "1e-400"), ("-1e308", "-1e308"),
          ("minus_huge", f"-{HUGE}"), ("1.7E9", "1.7E9")]),
    *(case(f"{name}_{sign}huge_leeway_{leeway}", signed(f'{{"{name}":{sign}{HUGE}}}'.encode()),
           error, leeway=leeway)
      for name, sign, error in [("exp", "-", ExpiredSignatureError),
                                ("nbf", "", ImmatureSignatureError),
                                ("iat", "", ImmatureSignatureError)]
      for leeway in (0, 60, 0.5)),
    *(case(f"{name}_leeway_nan", encode({name: NOW}, KEY), error, leeway=math.nan)
      for name, error in [("exp", ExpiredSignatureError), ("nbf", ImmatureSignatureError),
                          ("iat", ImmatureSignatureError)]),
    case("exp_without_now", encode({"exp": 1300819380}, KEY), ExpiredSignatureError, now=None),
    case("nbf_without_now", encode({"nbf": 2**40}, KEY), ImmatureSignatureError, now=None),
]


@for_each("token, policy, error", TIMES)
def test_decode_of_token_at_the_wrong_time_is_rejected(token, policy, error):
    assert type(rejection(token, **policy)) is error


@for_each("claims, now, leeway", [
    *(pytest.param({name: value}, now, leeway, id=f"{name}_{value}_leeway_{leeway}_at_{now - NOW}")
      for name, leeway, _, now, _ in BOUNDARIES for value in (NOW, float(NOW))),
    pytest.param({"exp": 1, "iat": 0}, 0, 0, id="at_the_epoch"),
    *(pytest.param({name: value}, NOW, leeway, id=f"{name}_huge_leeway_{leeway}")
      for name, value in [("exp", int(HUGE)), ("nbf", -int(HUGE)), ("iat", -int(HUGE))]
      for leeway in (0, 60, 0.5)),
])
def test_decode_of_token_at_the_right_time_returns_its_claims(claims, now, leeway):
    token = encode(claims, KEY)

    assert decode(token, KEY, now=now, leeway=leeway) == claims


@for_each("claims", [
    {name: value} for name in ["exp", "nbf", "iat"] for value in [*NO_NUMBERS, NOW + 1]
    if (name, value) != ("exp", NOW + 1)
])
def test_rejection_of_wrong_time_names_the_claim(claims):
    [name] = claims

    assert name in str(rejection(encode(claims, KEY)))


# --- Rejected: issuer, audience, subject, token identifier --------------------------------------

NO_STRINGS = [None, True, 0, 1.5, [], ["alice"], {}, [CANARY], {CANARY: 1}]
NO_AUDIENCES = [
    None, True, 0, 1.5, {}, {"api": 1}, {CANARY: 1}, [None], ["api", None], ["api", 1], [["api"]],
    ["api", {}], [True],
]
OTHER_AUDIENCES = [
    ("api", "web"), ("api", None), (["api"], None), ([], None), ([], "api"), ([], []),
    ("api", []), ("ap", "api"), ("api", "ap"), ("", "api"), ("API", "api"), ("api", ""),
    ("api", ["apis", "web"]), (["a", "p", "i"], "api"), ("", None), ([CANARY], None),
]
OTHER_ISSUERS = [
    (ISSUER, "https://b.example"), ("https://a.example/", ISSUER), ("https://a", ISSUER),
    ("HTTPS://a.example", ISSUER), ("", ISSUER), (ISSUER, []), (ISSUER, ""),
]
NAMES = [
    *(case(f"{name}_{value}", encode({name: value}, KEY), error)
      for name, error in [("sub", InvalidClaimError), ("jti", InvalidClaimError),
                          ("iss", InvalidIssuerError)]
      for value in NO_STRINGS),
    *(case(f"iss_{value}_with_issuer", encode({"iss": value}, KEY), InvalidIssuerError,
           issuer=ISSUER)
      for value in [None, True, 0, [], [ISSUER], {}]),
    *(case(f"iss_{iss}_issuer_{issuer}", encode({"iss": iss}, KEY), InvalidIssuerError,
           issuer=issuer)
      for iss, issuer in OTHER_ISSUERS),
    *(case(f"aud_{aud}_audience_{audience}", encode({"aud": aud}, KEY), InvalidAudienceError,
           audience=audience)
      for aud, audience in [*itertools.product(NO_AUDIENCES, ["api", ["api"], None]),
                            *OTHER_AUDIENCES]),
    *(case(f"no_iss_issuer_{issuer}", signed(), MissingRequiredClaimError, issuer=issuer)
      for issuer in [ISSUER, "", [ISSUER]]),
    *(case(f"no_aud_audience_{audience}", signed(), MissingRequiredClaimError, audience=audience)
      for audience in ["api", "", ["api"], []]),
    *(case(f"no_exp_require_{require}", signed(), MissingRequiredClaimError, require=require)
      for require in [["exp"], ("sub", "exp"), {"exp": 1}, frozenset(["exp"])]),
]


@for_each("token, policy, error", NAMES)
def test_decode_of_token_with_wrong_name_is_rejected(token, policy, error):
    assert type(rejection(token, **policy)) is error


@for_each("policy, missing", [
    ({"require": ["sub", "exp"]}, "exp"), ({"require": ["exp"]}, "exp"),
    ({"issuer": ISSUER}, "iss"), ({"issuer": ""}, "iss"), ({"issuer": [ISSUER]}, "iss"),
    ({"audience": "api"}, "aud"), ({"audience": ""}, "aud"), ({"audience": ["api"]}, "aud"),
    ({"audience": []}, "aud"),
])
def test_rejection_of_missing_claim_names_it(policy, missing):
    error = rejection(signed(), **policy)

    assert (type(error), error.claim) == (MissingRequiredClaimError, missing)
    assert str(error) == f"Token is missing the {missing} claim"


@for_each("claims, policy", [
    ({"sub": "alice"}, {"require": ["sub"]}),
    ({"aud": "api"}, {"audience": "api"}),
    ({"aud": "api"}, {"audience": ["web", "api"]}),
    ({"aud": "api"}, {"audience": ("web", "api")}),
    ({"aud": ["web", "api"]}, {"audience": "api"}),
    ({"aud": ["web", "api"]}, {"audience": ["api", "other"]}),
    ({"aud": ""}, {"audience": ""}),
    ({"iss": ISSUER}, {"issuer": ISSUER}),
    ({"iss": ISSUER}, {"issuer": None}),
    ({"iss": ""}, {"issuer": ""}),
    ({"iss": ISSUER}, {"issuer": ["https://b.example", ISSUER]}),
])
def test_decode_of_token_with_expected_names_returns_its_claims(claims, policy):
    token = encode(claims, KEY)

    assert decode(token, KEY, **policy) == claims


# --- Rejected: wrong keys and signatures --------------------------------------------------------


def signature_of(digest):
    """A token whose signature is `digest` of the signing input."""
    signing_input = b64(HEADER) + b"." + b64(PAYLOAD)
    return signing_input + b"." + digest(signing_input)


WRONG_SIGNATURES = {
    "other_key": signed(key=OTHER_KEY),
    "key_with_newline": signed(key=KEY + b"\n"),
    "key_cut": signed(key=KEY[:-1]),
    "empty_key": signed(key=b""),
    "hash_of_key": signed(key=hashlib.sha256(KEY).digest()),
    "zeros": signature_of(lambda _: b64(bytes(32))),
    "no_key": signature_of(lambda text: b64(hashlib.sha256(text).digest())),
    "no_hmac": signature_of(lambda text: b64(hashlib.sha256(KEY + text).digest())),
    "sha512": signature_of(lambda text: b64(hmac.digest(KEY, text, "sha512"))),
    "sha512_cut": signature_of(lambda text: b64(hmac.digest(KEY, text, "sha512")[:32])),
    "cut": signature_of(lambda text: b64(hmac.digest(KEY, text, "sha256")[:16])),
    "longer": signature_of(lambda text: b64(hmac.digest(KEY, text, "sha256") + b"\0")),
    "hexadecimal": signature_of(lambda text: hmac.digest(KEY, text, "sha256").hex().encode()),
    "raw": signature_of(lambda text: hmac.digest(KEY, text, "sha256").replace(b".", b"")),
    "of_payload_alone": signature_of(lambda _: b64(hmac.digest(KEY, b64(PAYLOAD), "sha256"))),
    "of_decoded_parts": signature_of(
        lambda _: b64(hmac.digest(KEY, HEADER + b"." + PAYLOAD, "sha256"))),
    "of_other_payload": signed().replace(b64(PAYLOAD), b64(b'{"sub":"admin"}')),
}
UNPARSED_PAYLOADS = {
    "not_json": b64(b"not JSON"),
    "duplicate": b64(b'{"a":1,"a":1}'),
    "expired": b64(b'{"exp":1}'),
    "exp_null": b64(b'{"exp":null}'),
    "not_base64": b"!",
    "padding": b"=",
    "one_character": b"A",
    "empty": b"",
    "dot": b".",
    "deep": b64(b"[" * 12_000),
}
SIGNATURES = [
    *(case(name, token, InvalidSignatureError) for name, token in WRONG_SIGNATURES.items()),
    # InvalidSignatureError although the payload is malformed: so no byte of it was parsed.
    *(case(f"{name}_with_other_key", sealed(b64(HEADER), payload, OTHER_KEY), InvalidSignatureError)
      for name, payload in UNPARSED_PAYLOADS.items()),
]


@for_each("token, policy, error", SIGNATURES)
def test_decode_of_token_with_wrong_signature_is_rejected(token, policy, error):
    assert type(rejection(token, **policy)) is error


# --- All rejected tokens together ---------------------------------------------------------------

REJECTED = [(row.values[0], row.values[1])
            for row in MALFORMED + HEADERS + PAYLOADS + TIMES + NAMES + SIGNATURES]


def test_messages_of_all_rejections_are_fixed_printable_sentences():
    messages = {str(rejection(token, **policy)) for token, policy in REJECTED}

    assert 10 < len(messages) < 40
    assert all(message.isascii() and message.isprintable() for message in messages)
    assert not any(set(message) & set('"\\') for message in messages)  # RFC 6750 §3: quoted-string


def test_messages_of_all_rejections_contain_no_part_of_token_or_key():
    for token, policy in REJECTED:
        message = str(rejection(token, **policy))

        text = token.decode("latin-1") if isinstance(token, bytes) else str(token)
        assert not any(shares_text(message, part) for part in text[:MAX_TOKEN_BYTES].split("."))
        assert not shares_text(message, CANARY)
        assert not shares_text(message, KEY.decode())


def test_verify_of_all_rejected_tokens_raises_invalid_token_error():
    signer = signer_at(NOW)

    for token, _ in REJECTED:
        with pytest.raises(InvalidTokenError):
            signer.verify(token)


def mutate(rng, token):
    """Change, drop or repeat a few characters of a str, or bytes of a bytes."""
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


MUTABLE = signer_at(NOW).sign({"sub": "alice", "secret": CANARY, "odd": ">?>?~~"})


@for_each("original", [
    pytest.param(MUTABLE, id="str"),
    pytest.param(MUTABLE.encode(), id="bytes"),
    pytest.param(signed(b'{"sub":"alice","exp":%d}' % (NOW + 1), b'{"alg":"HS256"}').decode(),
                 id="other_header"),
])
def test_mutated_tokens_are_rejected_unless_equal_to_the_original(original):
    rng = random.Random(7)
    signer = signer_at(NOW)
    expected = signer.verify(original)
    errors = collections.Counter()
    messages = set()

    for _ in range(1000):
        token = mutate(rng, original)
        for verify in (lambda token: decode(token, KEY, now=NOW), signer.verify):
            try:
                claims = verify(token)
            except InvalidTokenError as error:
                errors[type(error)] += 1
                messages.add(str(error))
            else:
                assert token == original and claims == expected

    assert {DecodeError, InvalidSignatureError} <= set(errors)
    text = original if isinstance(original, str) else original.decode()
    assert not any(shares_text(message, text) for message in messages)
    assert len(messages) < 20  # fixed sentences, not made from the token


# --- The cache of payloads


def test_token_that_was_verified_before_is_checked_again_each_time():
    clock = support.Clock()
    signer = wsgi_auth.TokenSigner(KEY, lifetime=60, leeway=0, clock=clock)
    token = signer.sign({"sub": "alice", "roles": ["a"]})
    claims = signer.verify(token)
    claims["roles"].append("admin")
    claims["sub"] = "root"

    again = signer.verify(token)
    clock.now += 60

    assert (again["sub"], again["roles"]) == ("alice", ["a"])
    with pytest.raises(wsgi_auth.ExpiredSignatureError):
        signer.verify(token)


def test_only_short_tokens_with_a_valid_signature_are_cached():
    signer = wsgi_auth.TokenSigner(KEY)
    short, long = signer.sign({"sub": "a"}), signer.sign({"sub": "a" * 1024})

    class Text(str):
        """Its own `__eq__` could make it equal to another token."""

    for token in (short, short, short.encode(), long, Text(signer.sign({"sub": "b"}))):
        signer.verify(token)
    for token in (short[:-1], wsgi_auth.TokenSigner("o" * 32).sign({"sub": "a"}), "", 1):
        with pytest.raises(wsgi_auth.InvalidTokenError):
            signer.verify(token)

    assert signer._cached_payload.cache_info()[::3] == (1, 1)  # hits, entries


def test_cache_of_a_signer_is_bounded(monkeypatch):
    monkeypatch.setattr(wsgi_auth, "TOKEN_CACHE_SIZE", 2)
    signer = wsgi_auth.TokenSigner(KEY)

    for _ in range(3):
        signer.verify(signer.sign({"sub": "alice"}))

    assert signer._cached_payload.cache_info().currsize == 2
