"""Passwords: hashes made here and elsewhere, and the junk that may stand in their place."""

import base64
import hashlib
import inspect

import pytest

from wsgi_auth import (
    PBKDF2_ITERATIONS,
    hash_password,
    needs_rehash,
    password_iterations,
    verify_password,
)


@pytest.fixture(autouse=True)
def clean_environment():
    """Nothing here reads the environment or a folder."""


PASSWORD = "correct horse"
UNICODE_PASSWORD = "Zo\u00eb \u2603"

# Made by Django 5.2, Werkzeug 3.1 and passlib 1.7 themselves.
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
    """The iterations of each PBKDF2 so far; all of them are really computed."""
    counts = []
    compute = hashlib.pbkdf2_hmac

    def count(name, password, salt, iterations):
        counts.append(iterations)
        return compute(name, password, salt, iterations)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", count)
    return counts


# --- Hashes of other libraries ------------------------------------------------------------------


@pytest.mark.parametrize("password, encoded", FOREIGN)
def test_verify_of_foreign_hash_is_true(password, encoded):
    assert verify_password(password, encoded) is True


@pytest.mark.parametrize("wrong", [
    "Correct horse", "correct horse ", " correct horse", "correct", "correct horsf", "", None,
    b"correct horse", "correct\u00a0horse", "x" * 1025, "correct horse\ud800", 0, True, ["correct"],
], ids=ascii)
@pytest.mark.parametrize("password, encoded", FOREIGN[:4])
def test_verify_of_foreign_hash_with_wrong_password_is_false(password, encoded, wrong):
    assert verify_password(wrong, encoded) is False


def test_verify_of_equivalent_unicode_is_false_as_under_django():
    decomposed = "Zoe\u0308 \u2603"

    assert verify_password(decomposed, FOREIGN[4].values[1]) is False


@pytest.mark.parametrize("password, encoded", FOREIGN)
def test_usable_of_foreign_hash_is_true(password, encoded):
    assert password_iterations(encoded) > 0


def test_hash_of_current_cost_verifies_and_needs_no_rehash():
    assert verify_password(PASSWORD, DJANGO_600000) is True
    assert needs_rehash(DJANGO_600000) is False


# --- Hashes made here ---------------------------------------------------------------------------


@pytest.mark.parametrize("password", [
    PASSWORD, UNICODE_PASSWORD, "\U0001f600", " ", "\x00", "a\nb", "$", "x" * 65,
], ids=ascii)
def test_hash_of_password_is_pbkdf2_in_djangos_form(password):
    encoded = hash_password(password, iterations=10)

    algorithm, iterations, salt, checksum = encoded.split("$")
    derived = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), 10)
    assert (algorithm, iterations) == ("pbkdf2_sha256", "10")
    assert base64.b64decode(checksum, validate=True) == derived


@pytest.mark.parametrize("password", [
    PASSWORD, UNICODE_PASSWORD, "\U0001f600", " ", "\x00", "a\nb", "$", "x" * 65,
], ids=ascii)
def test_verify_of_hash_made_here_is_true_for_its_password_alone(password):
    encoded = hash_password(password, iterations=10)

    assert verify_password(password, encoded) is True
    assert verify_password(password + "x", encoded) is False
    assert password_iterations(encoded) > 0


def test_hash_of_one_password_twice_has_different_random_salts():
    salts = {hash_password(PASSWORD, iterations=1).split("$")[2] for _ in range(100)}

    assert len(salts) == 100
    assert all(len(salt) >= 22 for salt in salts)  # 16 bytes take 22 letters and digits


def test_hash_of_password_has_a_salt_of_letters_and_digits_as_djangos():
    salts = "".join(hash_password(PASSWORD, iterations=1).split("$")[2] for _ in range(100))

    assert salts.isascii() and salts.isalnum()  # passlib's reader of Django hashes insists


def test_hash_of_password_by_default_costs_600000_iterations():
    defaults = [inspect.signature(function).parameters["iterations"].default
                for function in (hash_password, needs_rehash)]

    assert defaults == [600_000, 600_000]
    assert PBKDF2_ITERATIONS == 600_000


@pytest.mark.parametrize("iterations", [1, 2, 1000])
def test_hash_with_iterations_spends_them(spent, iterations):
    encoded = hash_password(PASSWORD, iterations=iterations)

    assert spent == [iterations]
    assert encoded.startswith(f"pbkdf2_sha256${iterations}$")


@pytest.mark.parametrize("iterations", [0, -1, 10_000_001, 10**30])
def test_hash_with_iterations_out_of_range_raises_value_error(spent, iterations):
    with pytest.raises(ValueError, match="from 1 to 10000000"):
        hash_password(PASSWORD, iterations=iterations)

    assert spent == []


def test_hash_with_iterations_of_any_integer_writes_digits():
    encoded = hash_password(PASSWORD, iterations=True)

    assert encoded.startswith("pbkdf2_sha256$1$")
    assert verify_password(PASSWORD, encoded)


@pytest.mark.parametrize("iterations", ["1000", 1000.0, None], ids=repr)
def test_hash_with_iterations_that_are_no_integer_raises_type_error(iterations):
    with pytest.raises(TypeError):
        hash_password(PASSWORD, iterations=iterations)


@pytest.mark.parametrize("password", [
    "x", "x" * 1024, "\u00eb" * 512, "\u2603" * 341 + "x", "\U0001f600" * 256,
], ids=["1_byte", "1024_bytes", "two_byte_characters", "three_byte_characters",
        "four_byte_characters"])
def test_hash_of_password_up_to_1024_bytes_is_made(password):
    assert verify_password(password, hash_password(password, iterations=1)) is True


@pytest.mark.parametrize("password", [
    "", "x" * 1025, "\u00eb" * 512 + "x", "\u2603" * 342, "\U0001f600" * 257, "x" * 1_000_000,
    "\ud800", "pass\udcffword",
], ids=["empty", "1025_bytes", "two_byte_characters", "three_byte_characters",
        "four_byte_characters", "million_bytes", "lone_surrogate", "surrogate_escape"])
def test_hash_of_password_that_cannot_be_raises_value_error(spent, password):
    with pytest.raises(ValueError) as caught:
        hash_password(password, iterations=1)

    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 60  # so it does not show the password
    assert spent == []


@pytest.mark.parametrize("password", [None, b"correct horse", 1234, True, ["x"], bytearray(b"x")],
                         ids=repr)
def test_hash_of_what_is_not_text_raises_type_error(password):
    with pytest.raises(TypeError):
        hash_password(password, iterations=1)


# --- Junk ---------------------------------------------------------------------------------------

JUNK = [
    pytest.param("$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy", id="bcrypt_2a"),
    pytest.param("$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW", id="bcrypt_2b"),
    pytest.param("bcrypt_sha256$$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
                 id="django_bcrypt"),
    pytest.param("$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$"
                 "aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGhhc2g", id="argon2"),
    pytest.param("scrypt:32768:8:1$p5kZiG0XKLjnLneQ$" + "ab" * 64, id="werkzeug_scrypt"),
    pytest.param("5f4dcc3b5aa765d61d8327deb882cf99", id="md5"),
    pytest.param("md5$salt$5f4dcc3b5aa765d61d8327deb882cf99", id="django_md5"),
    pytest.param("sha1$salt$5baa61e4c9b93f3f0682250b6cf8331b7ee68fd8", id="django_sha1_plain"),
    pytest.param("{SSHA}AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", id="ldap"),
    pytest.param("!n3RFFf2yKkyGrDsLxbSpFe", id="django_unusable"),
    pytest.param("*", id="shadow_locked"),
    pytest.param("plain", id="plain"),
    pytest.param(PASSWORD, id="the_password_itself"),
    pytest.param("", id="empty"),
    pytest.param(None, id="none"),
    pytest.param(0, id="int"),
    pytest.param(10**30, id="huge_int"),
    pytest.param(1.5, id="float"),
    pytest.param(True, id="bool"),
    pytest.param([DJANGO], id="list"),
    pytest.param({"hash": DJANGO}, id="dict"),
    pytest.param(DJANGO.encode(), id="bytes"),
    pytest.param(bytearray(DJANGO.encode()), id="bytearray"),
    pytest.param("\ud800", id="lone_surrogate"),
    pytest.param("$" * 100_000, id="dollars"),
    pytest.param("pbkdf2_sha256$" * 10_000, id="prefixes"),
    # the iterations
    pytest.param(django("0"), id="zero_iterations"),
    pytest.param(django("00"), id="zero_twice"),
    pytest.param(django("01000"), id="leading_zero"),
    pytest.param(django("-1"), id="negative_iterations"),
    pytest.param(django("-1000"), id="negative_thousand"),
    pytest.param(django("+1000"), id="plus_sign"),
    pytest.param(django(" 1000"), id="space_before_iterations"),
    pytest.param(django("1000 "), id="space_after_iterations"),
    pytest.param(django("1_000"), id="underscore"),
    pytest.param(django("1e3"), id="exponent"),
    pytest.param(django("0x3e8"), id="hexadecimal"),
    pytest.param(django("1000.0"), id="fraction"),
    pytest.param(django(""), id="no_iterations"),
    pytest.param(django("True"), id="word"),
    pytest.param(django("10000001"), id="one_over_the_limit"),
    pytest.param(django("99999999"), id="ten_times_the_limit"),
    pytest.param(django("1" + "0" * 30), id="30_zeros"),
    pytest.param(django("9" * 100_000), id="100000_digits"),
    pytest.param(django("\u0661\u0660\u0660\u0660"), id="arabic_digits"),
    pytest.param(django("\uff11\uff10\uff10\uff10"), id="fullwidth_digits"),
    pytest.param(django("1\u00b3"), id="superscript_digit"),
    pytest.param(WERKZEUG.replace("1000", "10000001", 1), id="werkzeug_over_the_limit"),
    pytest.param(WERKZEUG.replace(":1000", "", 1), id="werkzeug_no_iterations"),
    pytest.param(WERKZEUG.replace(":1000", ":0", 1), id="werkzeug_zero"),
    pytest.param(PASSLIB.replace("1000", "99999999", 1), id="passlib_over_the_limit"),
    pytest.param(PASSLIB.replace("$1000", "$0", 1), id="passlib_zero"),
    pytest.param(DJANGO_SHA1.replace("1000", "10000001", 1), id="sha1_over_the_limit"),
    # the algorithm
    pytest.param(DJANGO.replace("sha256", "sha512"), id="other_digest"),
    pytest.param(DJANGO.replace("sha256", "md5"), id="weak_digest"),
    pytest.param(DJANGO.replace("sha256", ""), id="no_digest"),
    pytest.param(DJANGO.upper(), id="upper_case"),
    pytest.param(DJANGO_SHA1.replace("sha1", "sha256"), id="checksum_of_sha1"),
    pytest.param(DJANGO.replace("sha256", "sha1"), id="checksum_of_sha256"),
    pytest.param(WERKZEUG.replace("sha256", "sha1"), id="werkzeug_other_digest"),
    pytest.param(WERKZEUG.replace("sha256", "__class__"), id="werkzeug_attribute"),
    pytest.param(PASSLIB.replace("sha256", "sha512"), id="passlib_other_digest"),
    # the parts
    pytest.param("pbkdf2_sha256", id="algorithm_alone"),
    pytest.param("pbkdf2_sha256$1000", id="two_parts"),
    pytest.param(f"pbkdf2_sha256$1000${SALT}", id="three_parts"),
    pytest.param(DJANGO + "$", id="dollar_after"),
    pytest.param("$" + DJANGO, id="dollar_before"),
    pytest.param(DJANGO + "$" + CHECKSUM, id="five_parts"),
    pytest.param(DJANGO + "\n", id="newline_after"),
    pytest.param(" " + DJANGO, id="space_before"),
    pytest.param(DJANGO + "\x00", id="nul_after"),
    pytest.param(DJANGO + DJANGO, id="twice"),
    pytest.param(PASSLIB[1:], id="passlib_without_dollar"),
    pytest.param(PASSLIB.rpartition("$")[0], id="passlib_three_parts"),
    pytest.param(WERKZEUG.rpartition("$")[0], id="werkzeug_two_parts"),
    # the salt
    pytest.param(django(salt=""), id="empty_salt"),
    pytest.param(django(salt="\ud800"), id="lone_surrogate_in_salt"),
    pytest.param(WERKZEUG.replace("p5kZ", "\udcff"), id="werkzeug_lone_surrogate_in_salt"),
    pytest.param(PASSLIB.replace("cY4x", "cY4"), id="passlib_salt_of_one_character_too_many"),
    pytest.param(PASSLIB.replace("cY4x", "cY-_"), id="passlib_salt_in_base64url"),
    # the checksum
    pytest.param(django(checksum=""), id="empty_checksum"),
    pytest.param(django(checksum="="), id="checksum_of_padding"),
    pytest.param(django(checksum="===="), id="checksum_of_much_padding"),
    pytest.param(django(checksum="A"), id="one_character"),
    pytest.param(django(checksum="AAAA"), id="three_bytes"),
    pytest.param(django(checksum=CHECKSUM[:-1]), id="checksum_unpadded"),
    pytest.param(django(checksum=CHECKSUM[:-4]), id="checksum_truncated"),
    pytest.param(django(checksum=CHECKSUM[:20]), id="checksum_truncated_to_15_bytes"),
    pytest.param(django(checksum="AAAA" + CHECKSUM), id="checksum_of_35_bytes"),
    pytest.param(django(checksum=CHECKSUM.replace("+", "-").replace("/", "_")),
                 id="checksum_in_base64url"),
    pytest.param(django(checksum=CHECKSUM.replace("+", ".")), id="checksum_in_ab64"),
    pytest.param(django(checksum=CHECKSUM[:8] + "\n" + CHECKSUM[8:]), id="checksum_with_newline"),
    pytest.param(django(checksum=CHECKSUM[:8] + "\u00e9" + CHECKSUM[9:]), id="checksum_not_ascii"),
    pytest.param(django(checksum=CHECKSUM[:8] + "\ud800"), id="lone_surrogate_in_checksum"),
    pytest.param(WERKZEUG[:-1], id="werkzeug_odd_hexadecimal"),
    pytest.param(WERKZEUG[:-2], id="werkzeug_truncated"),
    pytest.param(WERKZEUG[:-64], id="werkzeug_empty_checksum"),
    pytest.param(WERKZEUG + "00", id="werkzeug_longer"),
    pytest.param(WERKZEUG[:-1] + "g", id="werkzeug_no_hexadecimal"),
    pytest.param(WERKZEUG[:-2] + " 0", id="werkzeug_space_in_hexadecimal"),
    pytest.param(PASSLIB[:-1], id="passlib_truncated"),
    pytest.param(PASSLIB[:-2], id="passlib_one_character_too_many"),
    pytest.param(PASSLIB.rpartition("$")[0] + "$", id="passlib_empty_checksum"),
    pytest.param(PASSLIB + "=", id="passlib_padded"),
    pytest.param(PASSLIB.replace(".", "+"), id="passlib_in_base64"),
]


@pytest.mark.parametrize("encoded", JUNK)
def test_hash_that_is_junk_is_false_everywhere_and_costs_nothing(spent, encoded):
    assert verify_password(PASSWORD, encoded) is False
    assert password_iterations(encoded) == 0
    assert needs_rehash(encoded, iterations=1) is True
    assert spent == []


@pytest.mark.parametrize("password", [None, b"x", "", "\ud800", "x" * 1025], ids=ascii)
@pytest.mark.parametrize("encoded", [None, "", b"x", "\ud800", 10**30], ids=ascii)
def test_verify_of_junk_with_junk_is_false(password, encoded):
    assert verify_password(password, encoded, min_iterations=10) is False


def test_usable_of_hash_at_the_limit_is_true():
    assert password_iterations(django("10000000")) == 10**7  # and verified it would take seconds


@pytest.mark.parametrize("salt", ["s", "\u00eb\u2603", "a b", "a\nb", ":", "x" * 1000], ids=ascii)
def test_verify_of_hash_with_odd_salt_is_true(salt):
    checksum = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt.encode(), 10)

    encoded = django(10, salt, base64.b64encode(checksum).decode())

    assert verify_password(PASSWORD, encoded) is True


def test_verify_of_passlib_hash_without_salt_is_true():
    checksum = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), b"", 10)

    text = base64.b64encode(checksum).decode().rstrip("=").replace("+", ".")

    assert verify_password(PASSWORD, f"$pbkdf2-sha256$10$${text}") is True


# --- What a refusal costs -----------------------------------------------------------------------


@pytest.mark.parametrize("encoded", [None, "", "$2a$10$junk", b"junk", django("99999999")],
                         ids=ascii)
def test_verify_without_hash_spends_min_iterations(spent, encoded):
    verified = verify_password(PASSWORD, encoded, min_iterations=700)

    assert verified is False
    assert spent == [700]


@pytest.mark.parametrize("iterations, total", [(1, 700), (300, 700), (699, 700), (700, 700),
                                               (900, 900)])
def test_verify_of_wrong_password_spends_at_least_min_iterations(spent, iterations, total):
    encoded = hash_password(PASSWORD, iterations=iterations)
    spent.clear()

    verified = verify_password("wrong", encoded, min_iterations=700)

    assert verified is False
    assert sum(spent) == total
    assert 0 not in spent


@pytest.mark.parametrize("iterations", [300, 700, 900])
def test_verify_of_right_password_spends_its_own_iterations_alone(spent, iterations):
    encoded = hash_password(PASSWORD, iterations=iterations)
    spent.clear()

    verified = verify_password(PASSWORD, encoded, min_iterations=700)

    assert verified is True
    assert spent == [iterations]


def test_verify_without_min_iterations_spends_nothing_on_nobody(spent):
    verified = verify_password(PASSWORD, None)

    assert verified is False
    assert spent == []


@pytest.mark.parametrize("password", ["", None, b"x", "\ud800", "x" * 1025, "wrong"], ids=ascii)
def test_verify_of_any_refused_password_spends_the_same_for_nobody(spent, password):
    encoded = hash_password(PASSWORD, iterations=700)
    spent.clear()

    verify_password(password, encoded, min_iterations=700)
    for_somebody = sum(spent)
    spent.clear()
    verify_password(password, None, min_iterations=700)

    assert sum(spent) == for_somebody  # so the time does not tell who is registered


# --- When to hash anew --------------------------------------------------------------------------


@pytest.mark.parametrize("iterations, needed", [(1, False), (999, False), (1000, False),
                                                (1001, True), (600_000, True)])
def test_rehash_of_django_hash_is_needed_below_the_iterations(iterations, needed):
    assert needs_rehash(DJANGO, iterations=iterations) is needed


@pytest.mark.parametrize("stored, needed", [("599999", True), ("600000", False),
                                            ("600001", False), ("10000000", False)])
def test_rehash_by_default_is_needed_below_600000(stored, needed):
    assert needs_rehash(django(stored)) is needed


@pytest.mark.parametrize("encoded", [DJANGO_SHA1, WERKZEUG, PASSLIB],
                         ids=["django_sha1", "werkzeug", "passlib"])
def test_rehash_of_another_form_is_needed_whatever_it_cost(encoded):
    assert needs_rehash(encoded, iterations=1) is True
    assert needs_rehash(encoded.replace("1000", "9000000", 1), iterations=1000) is True


@pytest.mark.parametrize("encoded", [DJANGO, WERKZEUG, PASSLIB, django("10000000"), None],
                         ids=["django", "werkzeug", "passlib", "limit", "none"])
def test_rehash_and_usable_of_any_hash_compute_none(spent, encoded):
    needs_rehash(encoded)
    password_iterations(encoded)

    assert spent == []


def test_rehash_at_the_next_login_ends_the_need():
    encoded = hash_password(PASSWORD, iterations=10)
    assert needs_rehash(encoded, iterations=20) is True

    renewed = hash_password(PASSWORD, iterations=20)

    assert needs_rehash(renewed, iterations=20) is False


# --- The other libraries themselves, where they are installed -----------------------------------


@pytest.mark.parametrize("password", [PASSWORD, UNICODE_PASSWORD], ids=ascii)
def test_hash_made_by_django_verifies_here(password):
    hashers = pytest.importorskip("django.contrib.auth.hashers")

    for hasher in (hashers.PBKDF2PasswordHasher(), hashers.PBKDF2SHA1PasswordHasher()):
        encoded = hasher.encode(password, "n3RFFf2yKkyGrDsLxbSpFe", iterations=100)
        assert verify_password(password, encoded) is True
        assert verify_password(password + "x", encoded) is False


@pytest.mark.parametrize("password", [PASSWORD, UNICODE_PASSWORD], ids=ascii)
def test_hash_made_here_verifies_under_django(password):
    hashers = pytest.importorskip("django.contrib.auth.hashers")

    encoded = hash_password(password, iterations=100)

    assert hashers.PBKDF2PasswordHasher().verify(password, encoded)
    assert not hashers.PBKDF2PasswordHasher().verify(password + "x", encoded)


@pytest.mark.parametrize("password", [PASSWORD, UNICODE_PASSWORD], ids=ascii)
def test_hash_made_by_werkzeug_verifies_here(password):
    security = pytest.importorskip("werkzeug.security")

    encoded = security.generate_password_hash(password, "pbkdf2:sha256:100")

    assert verify_password(password, encoded) is True
    assert verify_password(password + "x", encoded) is False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # passlib imports crypt
@pytest.mark.parametrize("password", [PASSWORD, UNICODE_PASSWORD], ids=ascii)
def test_hash_made_by_passlib_verifies_here(password):
    passlib_hash = pytest.importorskip("passlib.hash")

    encoded = passlib_hash.pbkdf2_sha256.using(rounds=100).hash(password)

    assert verify_password(password, encoded) is True
    assert verify_password(password + "x", encoded) is False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # passlib imports crypt
@pytest.mark.parametrize("password", [PASSWORD, UNICODE_PASSWORD], ids=ascii)
def test_hash_made_here_verifies_under_passlib(password):
    passlib_hash = pytest.importorskip("passlib.hash")

    hashes = [hash_password(password, iterations=1) for _ in range(20)]

    for encoded in hashes:
        assert passlib_hash.django_pbkdf2_sha256.verify(password, encoded)
        assert not passlib_hash.django_pbkdf2_sha256.verify(password + "x", encoded)
