"""Passwords: our own hashes, those of other libraries, and stored values that are no hash."""

import base64
import hashlib
import inspect

import pytest

from support import PASSWORD, for_each
from wsgi_auth import (
    PBKDF2_ITERATIONS, hash_password, needs_rehash, password_iterations, verify_password,
)


UNICODE_PASSWORD = "Zo\u00eb \u2603"

# Made with Django 5.2, Werkzeug 3.1 and passlib 1.7.
DJANGO = ("pbkdf2_sha256$1000$n3RFFf2yKkyGrDsLxbSpFe$"
          "Ojx+SLNFe/Jg6RntLE0fwXaApOJ131pSkj9poemmYlk=")
DJANGO_600000 = ("pbkdf2_sha256$600000$n3RFFf2yKkyGrDsLxbSpFe$"
                 "jH8IfixaX/2rzswXUWPVA0Rkgknq2DZW43rbN9jpVS0=")
DJANGO_SHA1 = "pbkdf2_sha1$1000$n3RFFf2yKkyGrDsLxbSpFe$Em41LAFXKnPpAMTV8ooZ9gXHwnk="
WERKZEUG = ("pbkdf2:sha256:1000$p5kZiG0XKLjnLneQ$"
            "53d0d31087b79106de722767795b28acdadb2f492054add7c11b8b58fc37c9a0")
PASSLIB = "$pbkdf2-sha256$1000$cY4xJsQYQ2jtXcsZo/T.3w$oYQuw2E6TIPhm7syo3BAE/3IUNCoqV4bGTtWPB3sZr0"

FOREIGN = [
    pytest.param(PASSWORD, DJANGO, id="django"),
    pytest.param(PASSWORD, DJANGO_SHA1, id="django_sha1"),
    pytest.param(PASSWORD, WERKZEUG, id="werkzeug"),
    pytest.param(PASSWORD, PASSLIB, id="passlib"),
    pytest.param(
        UNICODE_PASSWORD,
        "pbkdf2_sha256$1000$n3RFFf2yKkyGrDsLxbSpFe$LjxPR1i2FVvgzoCT6pAD75olkk4e7L80dYhC8rxoR/4=",
        id="django_unicode"),
    pytest.param(
        UNICODE_PASSWORD, "pbkdf2_sha1$1000$n3RFFf2yKkyGrDsLxbSpFe$pBf6Di2j2t/wEKmJshvTIN22YTg=",
        id="django_sha1_unicode"),
    pytest.param(
        UNICODE_PASSWORD, "pbkdf2:sha256:1000$ynSbDHaKbse7nqEb$"
        "dd18983070dbdff075ce6883feef3e11fd720c95da748f4e663fdf4200e64403", id="werkzeug_unicode"),
    pytest.param(
        UNICODE_PASSWORD, "$pbkdf2-sha256$1000$O2cspVQKgRBCCGFszXnPeQ$"
        "sctG/a5NYnhAvJibKSZkkzkOpSM9i5Hv.GMIS9Y9x74", id="passlib_unicode"),
]
SALT, CHECKSUM = DJANGO.split("$")[2:]


def django(iterations="1000", salt=SALT, checksum=CHECKSUM):
    return f"pbkdf2_sha256${iterations}${salt}${checksum}"


@pytest.fixture
def spent(monkeypatch):
    """The iteration counts of all calls of PBKDF2, which is really computed."""
    counts = []
    original = hashlib.pbkdf2_hmac

    def counted(name, password, salt, iterations):
        counts.append(iterations)
        return original(name, password, salt, iterations)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", counted)
    return counts


# --- Hashes of other libraries ------------------------------------------------------------------


@for_each("password, encoded", FOREIGN)
def test_hash_of_another_library_verifies_and_has_iterations(password, encoded):
    assert verify_password(password, encoded) is True
    assert password_iterations(encoded) == 1000


@for_each("wrong", [
    "Correct horse", "correct horse ", " correct horse", "correct", "correct horsf", "", None,
    b"correct horse", "correct\u00a0horse", "x" * 1025, "correct horse\ud800", 0, True, ["correct"],
])
@for_each("password, encoded", FOREIGN[:4])
def test_hash_of_another_library_with_wrong_password_is_false(password, encoded, wrong):
    assert verify_password(wrong, encoded) is False


def test_verify_of_the_password_in_nfd_is_true_for_a_hash_of_nfc():
    decomposed = "Zoe\u0308 \u2603"

    assert verify_password(decomposed, FOREIGN[4].values[1]) is True
    assert verify_password("Zoe \u2603", FOREIGN[4].values[1]) is False


def test_hash_of_current_cost_verifies_and_needs_no_rehash():
    assert verify_password(PASSWORD, DJANGO_600000) is True
    assert needs_rehash(DJANGO_600000) is False


# --- Our own hashes -----------------------------------------------------------------------------


@for_each("password", [
    PASSWORD, UNICODE_PASSWORD, "\U0001f600", " ", "\x00", "a\nb", "$", "x" * 65,
])
def test_hash_is_pbkdf2_in_the_format_of_django_and_verifies_only_its_password(password):
    encoded = hash_password(password, iterations=10)

    algorithm, iterations, salt, checksum = encoded.split("$")
    derived = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), 10)
    assert (algorithm, iterations) == ("pbkdf2_sha256", "10")
    assert base64.b64decode(checksum, validate=True) == derived
    assert verify_password(password, encoded) is True
    assert verify_password(password + "x", encoded) is False
    assert password_iterations(encoded) == 10


def test_hashes_of_one_password_have_different_salts_of_letters_and_digits():
    salts = {hash_password(PASSWORD, iterations=1).split("$")[2] for _ in range(100)}

    assert len(salts) == 100
    assert all(len(salt) >= 22 for salt in salts)  # 16 bytes take 22 letters and digits
    assert all(salt.isascii() and salt.isalnum() for salt in salts)  # as passlib requires


def test_hash_of_password_by_default_costs_600000_iterations():
    defaults = [inspect.signature(function).parameters["iterations"].default
                for function in (hash_password, needs_rehash)]

    assert defaults == [600_000, 600_000]
    assert PBKDF2_ITERATIONS == 600_000


@for_each("iterations", [1, 2, 1000])
def test_hash_with_iterations_spends_them(spent, iterations):
    spent.clear()

    encoded = hash_password(PASSWORD, iterations=iterations)

    assert spent == [iterations]
    assert encoded.startswith(f"pbkdf2_sha256${iterations}$")


@for_each("iterations", [0, -1, 10_000_001, 10**30])
def test_hash_with_iterations_out_of_range_raises_value_error(spent, iterations):
    with pytest.raises(ValueError, match="from 1 to 10000000"):
        hash_password(PASSWORD, iterations=iterations)

    assert spent == []


def test_hash_with_iterations_of_true_writes_digits():
    encoded = hash_password(PASSWORD, iterations=True)

    assert encoded.startswith("pbkdf2_sha256$1$")
    assert verify_password(PASSWORD, encoded)


@for_each("iterations", ["1000", 1000.0, None])
def test_hash_with_iterations_that_are_not_an_integer_raises_type_error(iterations):
    with pytest.raises(TypeError):
        hash_password(PASSWORD, iterations=iterations)


@for_each("password", [
    "x", "x" * 1024, "\u00eb" * 512, "\u2603" * 341 + "x", "\U0001f600" * 256,
])
def test_hash_of_password_up_to_1024_bytes_verifies(password):
    assert verify_password(password, hash_password(password, iterations=1)) is True


@for_each("password", [
    "", "x" * 1025, "\u00eb" * 512 + "x", "\u2603" * 342, "\U0001f600" * 257, "x" * 1_000_000,
    "\ud800", "pass\udcffword",
])
def test_hash_of_unusable_password_raises_value_error(spent, password):
    with pytest.raises(ValueError) as caught:
        hash_password(password, iterations=1)

    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 60  # too short to contain the password
    assert spent == []


@for_each("password", [None, b"correct horse", 1234, True, ["x"], bytearray(b"x")])
def test_hash_of_password_that_is_not_text_raises_type_error(password):
    with pytest.raises(TypeError):
        hash_password(password, iterations=1)


NFD, NFC = "Zoe\u0308", "Zo\u00eb"


def test_hash_of_password_is_that_of_its_nfc_form():
    salt, checksum = hash_password(NFD, iterations=10).split("$")[2:]

    derived = hashlib.pbkdf2_hmac("sha256", NFC.encode(), salt.encode(), 10)
    assert base64.b64decode(checksum) == derived


@for_each("stored, typed, expected, hashes", [
    (NFC, NFC, True, 1), (NFC, NFD, True, 1), (NFD, NFD, True, 2), (NFD, NFC, False, 1),
    ("x", NFD, False, 2), ("x", NFC, False, 1), (None, NFD, False, 2), (None, NFC, False, 1),
])
def test_verify_tries_the_nfc_form_and_then_the_form_as_typed(
        spent, stored, typed, expected, hashes):
    checksum = hashlib.pbkdf2_hmac("sha256", (stored or "").encode(), SALT.encode(), 10)
    spent.clear()
    encoded = django(10, checksum=base64.b64encode(checksum).decode()) if stored else None

    verified = verify_password(typed, encoded, min_iterations=10)

    assert verified is expected
    assert spent == [10] * hashes  # as many for an unknown user as for a wrong password


@for_each("password", [
    "\u0958" * 171 + "x",  # 514 bytes, 1,027 in NFC
    "e\u0308" * 342,  # 1,026 bytes, 684 in NFC
])
def test_password_over_the_limit_in_one_form_is_refused(spent, password):
    with pytest.raises(ValueError, match="longer than 1024 bytes"):
        hash_password(password, iterations=1)
    assert verify_password(password, None, min_iterations=10) is False

    assert spent == []


# --- Stored values that are no hash -------------------------------------------------------------

JUNK = {
    "bcrypt_2a": "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy",
    "bcrypt_2b": "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
    "django_bcrypt": "bcrypt_sha256$$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
    "argon2": "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$"
                 "aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGhhc2g",
    "werkzeug_scrypt": "scrypt:32768:8:1$p5kZiG0XKLjnLneQ$" + "ab" * 64,
    "md5": "5f4dcc3b5aa765d61d8327deb882cf99",
    "django_md5": "md5$salt$5f4dcc3b5aa765d61d8327deb882cf99",
    "django_sha1_plain": "sha1$salt$5baa61e4c9b93f3f0682250b6cf8331b7ee68fd8",
    "ldap": "{SSHA}AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "django_unusable": "!n3RFFf2yKkyGrDsLxbSpFe",
    "shadow_locked": "*",
    "plain": "plain",
    "the_password_itself": PASSWORD,
    "empty": "",
    "none": None,
    "int": 0,
    "huge_int": 10**30,
    "float": 1.5,
    "bool": True,
    "list": [DJANGO],
    "dict": {"hash": DJANGO},
    "bytes": DJANGO.encode(),
    "bytearray": bytearray(DJANGO.encode()),
    "lone_surrogate": "\ud800",
    "dollars": "$" * 100_000,
    "prefixes": "pbkdf2_sha256$" * 10_000,
    # the iterations
    "zero_iterations": django("0"),
    "zero_twice": django("00"),
    "leading_zero": django("01000"),
    "negative_iterations": django("-1"),
    "negative_thousand": django("-1000"),
    "plus_sign": django("+1000"),
    "space_before_iterations": django(" 1000"),
    "space_after_iterations": django("1000 "),
    "underscore": django("1_000"),
    "exponent": django("1e3"),
    "hexadecimal": django("0x3e8"),
    "fraction": django("1000.0"),
    "no_iterations": django(""),
    "word": django("True"),
    "one_over_the_limit": django("10000001"),
    "ten_times_the_limit": django("99999999"),
    "30_zeros": django("1" + "0" * 30),
    "100000_digits": django("9" * 100_000),
    "arabic_digits": django("\u0661\u0660\u0660\u0660"),
    "fullwidth_digits": django("\uff11\uff10\uff10\uff10"),
    "superscript_digit": django("1\u00b3"),
    "werkzeug_over_the_limit": WERKZEUG.replace("1000", "10000001", 1),
    "werkzeug_no_iterations": WERKZEUG.replace(":1000", "", 1),
    "werkzeug_zero": WERKZEUG.replace(":1000", ":0", 1),
    "passlib_over_the_limit": PASSLIB.replace("1000", "99999999", 1),
    "passlib_zero": PASSLIB.replace("$1000", "$0", 1),
    "sha1_over_the_limit": DJANGO_SHA1.replace("1000", "10000001", 1),
    # the algorithm
    "other_digest": DJANGO.replace("sha256", "sha512"),
    "weak_digest": DJANGO.replace("sha256", "md5"),
    "no_digest": DJANGO.replace("sha256", ""),
    "upper_case": DJANGO.upper(),
    "checksum_of_sha1": DJANGO_SHA1.replace("sha1", "sha256"),
    "checksum_of_sha256": DJANGO.replace("sha256", "sha1"),
    "werkzeug_other_digest": WERKZEUG.replace("sha256", "sha1"),
    "werkzeug_attribute": WERKZEUG.replace("sha256", "__class__"),
    "passlib_other_digest": PASSLIB.replace("sha256", "sha512"),
    # the parts
    "algorithm_alone": "pbkdf2_sha256",
    "two_parts": "pbkdf2_sha256$1000",
    "three_parts": f"pbkdf2_sha256$1000${SALT}",
    "dollar_after": DJANGO + "$",
    "dollar_before": "$" + DJANGO,
    "five_parts": DJANGO + "$" + CHECKSUM,
    "newline_after": DJANGO + "\n",
    "space_before": " " + DJANGO,
    "nul_after": DJANGO + "\x00",
    "twice": DJANGO + DJANGO,
    "passlib_without_dollar": PASSLIB[1:],
    "passlib_three_parts": PASSLIB.rpartition("$")[0],
    "werkzeug_two_parts": WERKZEUG.rpartition("$")[0],
    # the salt
    "empty_salt": django(salt=""),
    "lone_surrogate_in_salt": django(salt="\ud800"),
    "werkzeug_lone_surrogate_in_salt": WERKZEUG.replace("p5kZ", "\udcff"),
    "passlib_salt_of_one_character_too_many": PASSLIB.replace("cY4x", "cY4"),
    "passlib_salt_in_base64url": PASSLIB.replace("cY4x", "cY-_"),
    # the checksum
    "empty_checksum": django(checksum=""),
    "checksum_of_padding": django(checksum="="),
    "checksum_of_much_padding": django(checksum="===="),
    "one_character": django(checksum="A"),
    "three_bytes": django(checksum="AAAA"),
    "checksum_unpadded": django(checksum=CHECKSUM[:-1]),
    "checksum_truncated": django(checksum=CHECKSUM[:-4]),
    "checksum_truncated_to_15_bytes": django(checksum=CHECKSUM[:20]),
    "checksum_of_35_bytes": django(checksum="AAAA" + CHECKSUM),
    "checksum_in_base64url": django(checksum=CHECKSUM.replace("+", "-").replace("/", "_")),
    "checksum_in_ab64": django(checksum=CHECKSUM.replace("+", ".")),
    "checksum_with_newline": django(checksum=CHECKSUM[:8] + "\n" + CHECKSUM[8:]),
    "checksum_not_ascii": django(checksum=CHECKSUM[:8] + "\u00e9" + CHECKSUM[9:]),
    "lone_surrogate_in_checksum": django(checksum=CHECKSUM[:8] + "\ud800"),
    "werkzeug_odd_hexadecimal": WERKZEUG[:-1],
    "werkzeug_truncated": WERKZEUG[:-2],
    "werkzeug_empty_checksum": WERKZEUG[:-64],
    "werkzeug_longer": WERKZEUG + "00",
    "werkzeug_no_hexadecimal": WERKZEUG[:-1] + "g",
    "werkzeug_space_in_hexadecimal": WERKZEUG[:-2] + " 0",
    "passlib_truncated": PASSLIB[:-1],
    "passlib_one_character_too_many": PASSLIB[:-2],
    "passlib_empty_checksum": PASSLIB.rpartition("$")[0] + "$",
    "passlib_padded": PASSLIB + "=",
    "passlib_in_base64": PASSLIB.replace(".", "+"),
}


@for_each("encoded", JUNK)
def test_junk_verifies_nothing_and_costs_nothing(spent, encoded):
    spent.clear()

    assert verify_password(PASSWORD, encoded) is False
    assert password_iterations(encoded) == 0
    assert needs_rehash(encoded, iterations=1) is True
    assert spent == []


@for_each("password", [None, b"x", "", "\ud800", "x" * 1025])
@for_each("encoded", [None, "", b"x", "\ud800", 10**30])
def test_junk_with_unusable_password_is_false(password, encoded):
    assert verify_password(password, encoded, min_iterations=10) is False


def test_iterations_of_hash_at_the_limit_are_reported():
    assert password_iterations(django("10000000")) == 10**7  # verifying would take seconds


@for_each("salt", ["s", "\u00eb\u2603", "a b", "a\nb", ":", "x" * 1000])
def test_hash_with_unusual_salt_verifies(salt):
    checksum = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt.encode(), 10)

    encoded = django(10, salt, base64.b64encode(checksum).decode())

    assert verify_password(PASSWORD, encoded) is True


def test_passlib_hash_without_salt_verifies():
    checksum = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), b"", 10)

    text = base64.b64encode(checksum).decode().rstrip("=").replace("+", ".")

    assert verify_password(PASSWORD, f"$pbkdf2-sha256$10$${text}") is True


# --- The cost of a rejection --------------------------------------------------------------------


@for_each("encoded", [None, "", "$2a$10$junk", b"junk", django("99999999")])
def test_verify_without_hash_spends_min_iterations(spent, encoded):
    spent.clear()

    verified = verify_password(PASSWORD, encoded, min_iterations=700)

    assert verified is False
    assert spent == [700]


@for_each("iterations, total", [(1, 700), (300, 700), (699, 700), (700, 700), (900, 900)])
def test_verify_of_wrong_password_spends_at_least_min_iterations(spent, iterations, total):
    encoded = hash_password(PASSWORD, iterations=iterations)
    spent.clear()

    verified = verify_password("wrong", encoded, min_iterations=700)

    assert verified is False
    assert sum(spent) == total
    assert 0 not in spent


@for_each("iterations", [300, 700, 900])
def test_verify_of_right_password_spends_only_its_own_iterations(spent, iterations):
    encoded = hash_password(PASSWORD, iterations=iterations)
    spent.clear()

    verified = verify_password(PASSWORD, encoded, min_iterations=700)

    assert verified is True
    assert spent == [iterations]


def test_verify_without_hash_or_min_iterations_spends_nothing(spent):
    verified = verify_password(PASSWORD, None)

    assert verified is False
    assert spent == []


@for_each("password", ["", None, b"x", "\ud800", "x" * 1025, "wrong"])
def test_verify_of_rejected_password_costs_the_same_without_a_user(spent, password):
    encoded = hash_password(PASSWORD, iterations=700)
    spent.clear()

    verify_password(password, encoded, min_iterations=700)
    spent_for_user = sum(spent)
    spent.clear()
    verify_password(password, None, min_iterations=700)

    assert sum(spent) == spent_for_user  # so the time does not reveal which users exist


# --- When to replace a hash ---------------------------------------------------------------------


@for_each("iterations, needed", [
    (1, False), (999, False), (1000, False), (1001, True), (600_000, True)])
def test_rehash_of_django_hash_is_needed_below_the_iterations(iterations, needed):
    assert needs_rehash(DJANGO, iterations=iterations) is needed


@for_each("stored, needed", [
    ("599999", True), ("600000", False), ("600001", False), ("10000000", False)])
def test_rehash_by_default_is_needed_below_600000(stored, needed):
    assert needs_rehash(django(stored)) is needed


@for_each("encoded", [DJANGO_SHA1, WERKZEUG, PASSLIB])
def test_rehash_of_another_format_is_needed_at_any_cost(encoded):
    assert needs_rehash(encoded, iterations=1) is True
    assert needs_rehash(encoded.replace("1000", "9000000", 1), iterations=1000) is True


@for_each("encoded", [DJANGO, WERKZEUG, PASSLIB, django("10000000"), None])
def test_needs_rehash_and_password_iterations_compute_no_hash(spent, encoded):
    needs_rehash(encoded)
    password_iterations(encoded)

    assert spent == []


def test_rehash_of_renewed_hash_is_not_needed():
    encoded = hash_password(PASSWORD, iterations=10)
    assert needs_rehash(encoded, iterations=20) is True

    renewed = hash_password(PASSWORD, iterations=20)

    assert needs_rehash(renewed, iterations=20) is False


# --- Other libraries, if they are installed -----------------------------------------------------


def django_hash(password, hasher="PBKDF2PasswordHasher"):
    hashers = pytest.importorskip("django.contrib.auth.hashers")
    return getattr(hashers, hasher)().encode(password, "n3RFFf2yKkyGrDsLxbSpFe", iterations=100)


def django_sha1_hash(password):
    return django_hash(password, "PBKDF2SHA1PasswordHasher")


def werkzeug_hash(password):
    security = pytest.importorskip("werkzeug.security")
    return security.generate_password_hash(password, "pbkdf2:sha256:100")


def passlib_hash(password):
    return pytest.importorskip("passlib.hash").pbkdf2_sha256.using(rounds=100).hash(password)


def verify_with_django(password, encoded):
    hashers = pytest.importorskip("django.contrib.auth.hashers")
    return hashers.PBKDF2PasswordHasher().verify(password, encoded)


def verify_with_passlib(password, encoded):
    return pytest.importorskip("passlib.hash").django_pbkdf2_sha256.verify(password, encoded)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # passlib imports crypt
@pytest.mark.parametrize("hash_elsewhere", [
    django_hash, django_sha1_hash, werkzeug_hash, passlib_hash])
@for_each("password", [PASSWORD, UNICODE_PASSWORD])
def test_hash_made_by_another_library_verifies_here(password, hash_elsewhere):
    encoded = hash_elsewhere(password)

    assert verify_password(password, encoded) is True
    assert verify_password(password + "x", encoded) is False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # passlib imports crypt
@pytest.mark.parametrize("verify_elsewhere", [verify_with_django, verify_with_passlib])
@for_each("password", [PASSWORD, UNICODE_PASSWORD])
def test_our_hash_verifies_in_another_library(password, verify_elsewhere):
    hashes = [hash_password(password, iterations=1) for _ in range(20)]

    for encoded in hashes:
        assert verify_elsewhere(password, encoded)
        assert not verify_elsewhere(password + "x", encoded)
