"""The guard: path rules, refusals, scopes, identity, and every way to write a protected path."""

import inspect
import re
import sys
import unicodedata
from wsgiref.validate import validator

import pytest
import support
from support import KEY, Response, for_each, hello

import wsgi_auth
from wsgi_auth import PATH_CACHE_SIZE, BearerAuthMiddleware, InvalidTokenError, TokenSigner


NOW = 1_700_000_000
SIGNER = TokenSigner(KEY, clock=lambda: NOW)
OPEN, REFUSED, FORBIDDEN = 200, 401, 403


def shown(value):
    """A short id for a test."""
    return ascii(value).strip("'")[:40]


def bearer(**claims):
    return "Bearer " + SIGNER.sign({"sub": "alice", **claims})


def guard(app=hello, signer=SIGNER, **options):
    """The guard, with a validator on both of its sides."""
    return validator(BearerAuthMiddleware(validator(app), signer, **options))


def bare_guard(app=hello, **options):
    """The guard alone, for an environ that no validator lets through."""
    return BearerAuthMiddleware(app, SIGNER, **options)


def call(application, path="/protected", method="GET", authorization=None, **environ):
    if authorization is not None:
        environ["HTTP_AUTHORIZATION"] = authorization
    return support.call(application, path, method, **environ)


def call_with_only(environ, **options):
    """Status and body of the response to a request that has no other keys."""
    statuses = []
    body = bare_guard(**options)(environ, lambda status, headers: statuses.append(status))
    return int(statuses[0][:3]), b"".join(body)


def status(path, method="GET", authorization=None, mount="", **options):
    """What the guard answers, validated unless the path alone would fail it."""
    build = guard if path[:1] in ("", "/") else bare_guard
    return call(build(**options), path, method, authorization, SCRIPT_NAME=mount).status


def wsgi(path):
    """A path as the server hands it over (PEP 3333): each character stands for a byte of UTF-8."""
    return path.encode().decode("latin-1")


# --- Refusals -----------------------------------------------------------------------------------


def test_refusal_without_header_has_the_message_and_the_challenge():
    answer = call(guard())

    assert answer.status == REFUSED
    assert answer.json == {
        "success": False, "error": "An authorization header is required"}
    assert answer.headers == {
        "Content-Type": "application/json",
        "Content-Length": str(len(answer.body)),
        "WWW-Authenticate": 'Bearer realm="api"',
        "X-Content-Type-Options": "nosniff",
    }


def test_refusal_of_invalid_token_has_the_message_and_the_reason():
    answer = call(guard(), authorization="Bearer x")

    assert answer.status == REFUSED
    assert answer.json == {"success": False, "error": "Invalid authorization token"}
    assert answer.headers == {
        "Content-Type": "application/json",
        "Content-Length": str(len(answer.body)),
        "WWW-Authenticate": 'Bearer realm="api", error="invalid_token",'
                            ' error_description="Token must have three parts"',
        "X-Content-Type-Options": "nosniff",
    }


def test_refusal_for_scope_has_the_message_and_the_scopes():
    answer = call(guard(protect={"/": "read admin"}), authorization=bearer(scope="read"))

    assert answer.status == FORBIDDEN
    assert answer.json == {"success": False, "error": "Insufficient scope"}
    assert answer.headers == {
        "Content-Type": "application/json",
        "Content-Length": str(len(answer.body)),
        "WWW-Authenticate": 'Bearer realm="api", error="insufficient_scope", scope="read admin"',
        "X-Content-Type-Options": "nosniff",
    }


@for_each("authorization", [None, "Bearer x", bearer()])
def test_refusal_of_head_has_the_headers_and_no_body(authorization):
    guarded = guard(protect={"/": "admin"})

    got = call(guarded, authorization=authorization)
    head = call(guarded, method="HEAD", authorization=authorization)

    assert head == got._replace(body=b"")
    assert got.body


def test_refusal_of_expired_token_says_that_it_expired():
    old = TokenSigner(KEY, clock=lambda: NOW - 3610).sign({"sub": "alice"})

    answer = call(guard(), authorization=f"Bearer {old}")

    assert answer.status == REFUSED
    assert 'error_description="Token has expired"' in answer.headers["WWW-Authenticate"]


def test_refusal_reason_with_what_a_header_must_not_hold_is_sanitised():
    class Talkative(TokenSigner):
        def verify(self, token):
            raise InvalidTokenError('a "b" \\ c\r\nSet-Cookie: d\x7f\x00é')

    answer = call(guard(signer=Talkative(KEY)), authorization="Bearer x")

    assert answer.headers["WWW-Authenticate"].endswith(
        ' error_description="a ?b? ? c??Set-Cookie: d???"')


def test_realm_given_is_shown():
    answer = call(guard(realm="the demo's [1]"))

    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="the demo\'s [1]"'


def test_refused_request_is_answered_by_the_function_given():
    def refuse(environ, start_response, status, message, *headers):
        start_response(status, [("Content-Type", "text/plain"), *headers])
        return [message.encode()]

    answer = call(guard(refuse=refuse))

    assert (answer.status, answer.body) == (REFUSED, b"An authorization header is required")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="api"'


@for_each("realm", ['a"b', "a\\b", "a\r\nb", "a\tb", "a\x7f", "é"])
def test_realm_that_cannot_be_quoted_is_refused(realm):
    with pytest.raises(ValueError, match=re.escape(f"not a realm: {realm!r}")):
        guard(realm=realm)


# --- The Authorization header -------------------------------------------------------------------

TOKEN = SIGNER.sign({"sub": "alice"})


@for_each("authorization", [
    f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER {TOKEN}", f"bEaReR {TOKEN}",
    f"Bearer   {TOKEN}", f" \tBearer {TOKEN}\t ",
])
def test_header_with_valid_token_is_admitted(authorization):
    answer = call(guard(), authorization=authorization)

    assert answer == Response(OPEN, {"Content-Type": "text/plain"}, b"alice")


@for_each("authorization", ["", " ", "\t"])
def test_header_that_is_empty_counts_as_none(authorization):
    answer = call(guard(), authorization=authorization)

    assert answer == call(guard())


@for_each("authorization", [
    "Bearer", "Bearer ", f"Basic {TOKEN}", f"Token {TOKEN}", f"{TOKEN}", f"Bearer:{TOKEN}",
    f"Bearer,{TOKEN}", f"Bearer={TOKEN}", f"BearerX {TOKEN}", f"XBearer {TOKEN}",
    f"Bearer\t{TOKEN}", f"Bearer \t{TOKEN}", f"Bearer\xa0{TOKEN}", f"Bearer \xa0{TOKEN}",
    f"Bearer {TOKEN} x", f"Bearer x {TOKEN}", f"Bearer Bearer {TOKEN}", f'Bearer "{TOKEN}"',
    f"Bearer token={TOKEN}", f"Bearer {TOKEN},Bearer x", f"Bearer x,Bearer {TOKEN}",
    f"Bearer {TOKEN},Bearer {TOKEN}", f"Bearer {TOKEN}, Bearer {TOKEN}", f"Bearer {TOKEN},",
    f",Bearer {TOKEN}", f"Basic eDp5,Bearer {TOKEN}", f"Bearer {TOKEN};", f"Bearer {TOKEN}\r\nX: y",
    f"Bearer {TOKEN}\x00", f"Bearer {TOKEN}=", f"Bearer {TOKEN}\xe9", f"\x00Bearer {TOKEN}",
])
def test_header_of_any_other_form_is_refused_as_an_invalid_token(authorization):
    answer = call(guard(), authorization=authorization)

    assert answer.status == REFUSED
    assert answer.json["error"] == "Invalid authorization token"
    assert 'error="invalid_token", error_description="' in answer.headers["WWW-Authenticate"]


def test_header_with_another_scheme_says_so():
    answer = call(guard(), authorization="Basic YTpi")

    assert 'error_description="The scheme must be Bearer"' in answer.headers["WWW-Authenticate"]


def test_header_with_invalid_token_on_open_path_is_ignored():
    answer = call(guard(protect=["/protected"]), "/public", authorization="Bearer x")

    assert answer.body == b"nobody"


def test_token_anywhere_but_in_the_header_is_ignored():
    answer = call(
        guard(), QUERY_STRING=f"access_token={TOKEN}", HTTP_COOKIE=f"access_token={TOKEN}",
        HTTP_X_AUTHORIZATION=f"Bearer {TOKEN}", HTTP_PROXY_AUTHORIZATION=f"Bearer {TOKEN}")

    assert answer.json["error"] == "An authorization header is required"


# --- Identity -----------------------------------------------------------------------------------

FORGED = {"REMOTE_USER": "mallory", "AUTH_TYPE": "Basic", "wsgi_auth.claims": {"sub": "mallory"}}


def seen_identity(path, authorization=None):
    seen = {}

    def app(environ, start_response):
        seen.update({key: environ[key] for key in FORGED if key in environ})
        return hello(environ, start_response)

    call(guard(app, protect=["/protected"]), path, authorization=authorization, **FORGED)
    return seen


def test_identity_behind_the_guard_is_that_of_the_token():
    seen = seen_identity("/protected", bearer(scope="read", jti="1"))

    assert seen == {
        "REMOTE_USER": "alice",
        "AUTH_TYPE": "Bearer",
        "wsgi_auth.claims": {
            "iat": NOW, "exp": NOW + 3600, "jti": "1", "sub": "alice", "scope": "read"},
    }


@for_each("authorization", [None, bearer()])
def test_identity_on_open_path_is_removed(authorization):
    seen = seen_identity("/public", authorization)

    assert seen == {}


def test_identity_of_a_refused_request_is_removed():
    environ = {"PATH_INFO": "/protected", "HTTP_AUTHORIZATION": "Bearer x", **FORGED}
    bare_guard()(environ, lambda status, headers: None)

    assert seen_identity("/protected", "Bearer x") == {}
    assert environ.keys().isdisjoint(FORGED)


# --- Revocation ---------------------------------------------------------------------------------


def test_revocation_that_returns_true_is_an_invalid_token():
    answer = call(guard(is_revoked=lambda claims: True), authorization=bearer())

    assert answer.status == REFUSED
    assert answer.json["error"] == "Invalid authorization token"
    assert 'error_description="Token has been revoked"' in answer.headers["WWW-Authenticate"]


def test_revocation_that_returns_false_admits_and_is_called_with_the_claims():
    asked = []

    answer = call(guard(is_revoked=asked.append), authorization=bearer(jti="1"))

    assert answer.body == b"alice"
    assert [claims["jti"] for claims in asked] == ["1"]


def test_revocation_that_raises_ends_the_request_before_the_application():
    called = []

    def is_revoked(claims):
        raise OSError("the database is gone")

    with pytest.raises(OSError, match="the database is gone"):
        call(bare_guard(lambda *_: called.append(1), is_revoked=is_revoked), authorization=bearer())

    assert called == []


def test_revocation_of_an_invalid_token_is_not_checked():
    asked = []

    call(guard(is_revoked=asked.append), authorization="Bearer x")

    assert asked == []


def test_revocation_comes_before_the_scopes():
    answer = call(
        guard(protect={"/": "admin"}, is_revoked=lambda claims: True), authorization=bearer())

    assert answer.status == REFUSED


# --- Rules, methods and scopes ------------------------------------------------------------------


def test_protect_by_default_covers_everything():
    paths = ["", "/", "/a", "/a/b", "*"]

    assert {status(path) for path in paths} == {REFUSED}


@for_each("rule", ["/a/b", "/a/b/"])
def test_rule_covers_its_path_and_all_below_by_whole_segments(rule):
    paths = ["/a/b", "/a/b/", "/a/b/c", "/a/b/c/d", "/", "/a", "/a/", "/a/bc", "/b", "/x/a/b"]

    covered = [path for path in paths if status(path, protect=[rule]) == REFUSED]

    assert covered == ["/a/b", "/a/b/", "/a/b/c", "/a/b/c/d"]


@for_each("rule, methods", [
    ("/a", "GET HEAD POST PUT DELETE OPTIONS"),
    ("GET /a", "GET HEAD"),
    ("HEAD /a", "HEAD"),
    ("POST,DELETE /a", "POST DELETE"),
    ("POST /", "POST"),
])
def test_rule_with_methods_covers_those(rule, methods):
    every = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]

    covered = [method for method in every if status("/a", method, protect=[rule]) == REFUSED]

    assert covered == methods.split()


@for_each("method", ["post", "Post", "pOSt"])
def test_method_in_any_case_is_covered(method):
    answer = call(bare_guard(protect=["POST /a"]), "/a", method)

    assert answer.status == REFUSED


@for_each("method", ["GET", "HEAD"])
def test_exempt_get_opens_head_and_nothing_else(method):
    assert status("/a", method, exempt=["GET /a"]) == OPEN
    assert status("/a", "POST", exempt=["GET /a"]) == REFUSED


def test_exempt_inside_protect_is_open():
    rules = {"protect": ["/api"], "exempt": ["/api/docs"]}

    assert status("/api/docs/x", **rules) == OPEN
    assert status("/api/x", **rules) == REFUSED


def test_protect_inside_exempt_is_closed():
    rules = {"exempt": ["/public"], "protect": ["/", "/public/admin"]}

    assert status("/public/x", **rules) == OPEN
    assert status("/public/admin/x", **rules) == REFUSED


def test_rules_of_the_same_path_protect_before_they_exempt():
    assert status("/a", protect=["/a"], exempt=["/a"]) == REFUSED
    assert status("/a", protect=["/a"], exempt=["GET /a"]) == OPEN


def test_protected_method_of_an_exempt_path_is_closed():
    rules = {"protect": ["/", "POST /a"], "exempt": ["/a"]}

    assert status("/a", "GET", **rules) == OPEN
    assert status("/a", "POST", **rules) == REFUSED


SCOPES = {
    "/": (),
    "/api": "read",
    "POST,PUT /api": ["write"],
    "PUT,DELETE /api": ("delete",),
    "/api/admin": " read  admin ",
    "GET /api/admin/help": "",
}


@for_each("method, path, needed", [
    ("GET", "/", ""),
    ("GET", "/api", "read"),
    ("HEAD", "/api/x", "read"),
    ("POST", "/api/x", "write"),
    ("DELETE", "/api/x", "delete"),
    ("PUT", "/api/x", "write delete"),
    ("GET", "/api/admin", "read admin"),
    ("POST", "/api/admin/x", "read admin"),
    ("HEAD", "/api/admin/help", ""),
    ("POST", "/api/admin/help", "read admin"),
    ("GET", "/API/admin", "read admin"),
    ("GET", "/api/admin/../x", "read admin"),
    ("GET", "/%61pi/x", "read"),
    ("GET", "/x\0", "read admin"),
])
def test_scopes_of_the_longest_rule_are_needed(method, path, needed):
    guarded = guard(protect=SCOPES)

    rich = call(guarded, path, method, bearer(scope=f"other {needed}"))
    answers = [call(guarded, path, method, bearer(scope=" ".join(set(needed.split()) - {name})))
               for name in needed.split()]

    assert rich.status == OPEN
    assert {answer.status for answer in answers} <= {FORBIDDEN}
    assert all(answer.headers["WWW-Authenticate"].endswith(f'scope="{needed}"')
               for answer in answers)


@for_each("scope", [["admin"], {"admin": 1}, None, 3, True, "Admin", "admins", "a"])
def test_scope_claim_of_another_kind_grants_nothing(scope):
    assert status("/", authorization=bearer(scope=scope), protect={"/": "admin"}) == FORBIDDEN


@for_each("scope", ["a\tadmin", "a\u3000admin", "a\nadmin", "a\x1fadmin"])
def test_scope_claim_is_separated_only_by_spaces(scope):
    assert status("/", authorization=bearer(scope=scope), protect={"/": "admin"}) == FORBIDDEN


def test_scopes_without_a_token_are_not_shown():
    answer = call(guard(protect={"/": "admin"}))

    assert answer == call(guard())


@for_each("path", [
    "/api", "/api/", "/api/Users", "/api/a b", "/api/café", "/api/ÉTÉ", "/api/日本", "/api/100%",
    "/api/x//y", "/api/x;v=1", "/api/x?y", "/api/½", "/api/%41", "/API2/x",
    "/API2/É", "/café/x", "/café/É x", "/Straße/x",
])
def test_longest_match_with_any_name_below_demands_no_more(path):
    protect = {"/": "admin", "/api": (), "/API2": (), "/café": (), "/Straße": ()}

    assert status(wsgi(path), authorization=bearer(), protect=protect) == OPEN


@for_each("path", ["/API/x", "/CAFÉ", "/cafe\u0301", "/api2/x", "//api/x", "/api."])
def test_longest_match_in_only_some_readings_demands_all_scopes(path):
    protect = {"/": "admin", "/api": (), "/API2": (), "/café": ()}

    assert status(wsgi(path), authorization=bearer(), protect=protect) == FORBIDDEN


def test_rules_do_what_the_examples_in_the_docstring_say():
    text = inspect.getdoc(BearerAuthMiddleware)  # Python 3.13 has removed the indentation already
    rows = re.findall(r"^- (Open|Protected): (`.*?)\.[ \n]", text, re.MULTILINE)
    examples = [(outcome, path.replace("\\n", "\n"))
                for outcome, listed in rows for path in re.findall("`(.*?)`", listed)]
    guarded = bare_guard(protect=["/api"], exempt=["/api/docs"])

    outcomes = [("Protected" if guarded.protects({"PATH_INFO": path}) else "Open", path)
                for _, path in examples]

    assert outcomes == examples
    assert len(examples) == 21


# --- Malformed rules ----------------------------------------------------------------------------

MALFORMED = [
    "", " ", "api", "api/x", "GET", "GET,", "GET,/x", "GET, /x", ",GET /x", "GET,,POST /x",
    "GET POST /x", "GET  /x", "GET /x ", " /x", "GET\t/x", "get /x", "Get /x", "G3T /x", "GET x",
    "/a\tb", "/a\n", "/a\x00", "/a\x7f", "/a\xa0b", "/a\u2028", "//", "//a", "/a//b",
    "/a//", "/.", "/..", "/a/../b", "/a/./b", "/a/..", "/a.", "/a./b", "/...", "/a%20b", "/a%",
    "/a?b", "/?", "/a#b", "/a;b", "/;", "/a/*", "*", "/*", "/<id>", "/{id}", "/[a]", "/^a", "/x|y",
    "/a`", '/"a"', "/a\\b", "\\a", "http://h/a", "//h/a", "/a\uff0fb", "/a\uff0e", "/\uff41",
    "/cafe\u0301", "/½", "/a" * 65, "/a /b", "/ a", "/a/ ", "/articles POST", "/articles POST/",
    "/articles GET,POST", "/articles GET, POST", "GET /articles POST", "/my files DELETE",
    "/\u200b", "/a/\u200b/b", "/\u0301x/\u0301", "/a\ufffd",
    None, 3, 0, True, b"/x", ("GET", "/x"), ["/x"], {"/x": ()},
]


@for_each("rule", MALFORMED)
def test_rule_that_is_malformed_is_refused_and_shown(rule):
    shown = re.escape(repr(rule))

    with pytest.raises(ValueError, match=shown):
        guard(protect=["/good", rule])
    with pytest.raises(ValueError, match=shown):
        guard(exempt=["/good", rule])


@for_each("options", [
    {"protect": "/x"}, {"exempt": "/x"}, {"protect": ""}, {"exempt": ""}, {"protect": b"/x"},
])
def test_rules_as_one_string_are_refused(options):
    with pytest.raises(ValueError, match="rule"):
        guard(**options)


@for_each("options", [
    {"protect": ["/a", "/A"]},
    {"protect": ["/a"], "exempt": ["/A"]},
    {"protect": {"GET /straße": (), "POST /STRASSE": ()}},
    {"protect": ["/cafe", "/café"]},
    {"protect": ["/a_b"], "exempt": ["/a-b"]},
    {"protect": {"/a.b": "x", "GET /a~b": "y"}},
])
def test_rules_that_differ_only_in_case_accents_or_punctuation_are_refused(options):
    with pytest.raises(ValueError, match="letter case, accents or punctuation"):
        guard(**options)


@for_each("scopes", [
    "a\tb", "a\u3000b", "a\n", ["a b"], [""], ['"'], ["a\\b"], "é", "a\x7f", [3], [None], [["a"]],
    b"a", None, 3,
])
def test_scopes_that_are_malformed_are_refused(scopes):
    with pytest.raises(ValueError):
        guard(protect={"/x": scopes})


@for_each("rules", [
    ["/b", "/a/"], ("/b", "/a"), {"/a", "/a/A"}, {"/a": ()}, iter(["/a"]), ["GET,M /a"],
])
def test_rules_in_any_collection_are_accepted(rules):
    assert status("/a", protect=rules) == REFUSED


@for_each("rule", [
    "/a.b", "/.a", "/a-b_c~d", "/@a", "/a:b", "/a,b", "/a=b", "/(a)", "/a+b", "/$a!'&", "/café",
    "/日本", "/Ab/C",
])
def test_rule_with_any_other_sign_covers_its_path(rule):
    assert status(wsgi(rule), protect=[rule]) == REFUSED
    assert status(wsgi(rule), protect=[rule + "x"]) == OPEN


def test_empty_rules_leave_everything_open():
    assert status("/a", protect=[]) == OPEN


# --- Public paths -------------------------------------------------------------------------------


@for_each("path", [
    "", "/", "*", "/apix", "/api-docs", "/public/api", "/public/protected", "/protectedx/deeper",
    "/protecte", "/protected-x", "/protected_html", "/xprotected", "/x.protected", "/rotected",
    "/?next=protected", "/public?next=protected", "/public;v=1", "/public;next=protected",
    "/Public/README.TXT", "/a b/c d", "/café", "/Ünïcode/ÉTÉ", "/日本/東京", "/½", "/100%", "/100%25",
    "/50%-off", "/%zz", "/a%20b", "/a+b", "/~alice", "/@alice/feed", "/a:b", "/.well-known/x",
    "/x..y", "/a//b", "/a/./b", "/a/", "/a\\b", "/caf\udce9", "/x\xe9", "/\u20ac",
    "/" + "a" * 70_000, "/" + "a/" * 35_000, "/" + "日本" * 300, "/C#", "/What?", "/Inc.", "/😀",
    "/x//protectedx", "/x//api-docs", "/a/x//y", "/cafe\u0301/men\u0301", "/हिन्दी/x", "/a\u200cb",
    "/Team HR/my api", "/café/protected", "/новости/год", "/x^y/[id]/{z}/api", "/a/b/protected",
])
def test_path_that_is_clearly_public_stays_public(path):
    rules = {"protect": ["/protected", "/api", "POST /articles"]}
    spelling = path if path in ("/caf\udce9", "/\u20ac", "/x\xe9") else wsgi(path)

    assert status(spelling, **rules) == OPEN


@for_each("path", [
    "/x//protected", "/x/%70rotected", "/x/100%/protected", "/?next=/protected", "/?/protected",
    "/#/protected", "/public?next=/protected", "/public#/protected", "/x;y=/protected",
    "/x;protected", "/x/@@/protected", "/x /protected", "/x./protected.json/y", "/\xff/protected",
    "/x/protected/%zz", "/caf\xe9/protected", "/x;y;z;protected.tar.gz",
])
def test_path_that_is_not_canonical_and_contains_the_words_of_a_rule_is_refused(path):
    assert status(path, protect=["/protected"]) == REFUSED
    assert status(path, protect=["/protected/x/z", "/protected/protected"]) == OPEN


@for_each("path", ["/api%2\xe9f", "/api%2\xc3\xa9f", "/x//api%\xff2fy"])
def test_encoding_that_appears_when_bytes_are_dropped_is_undone(path):
    assert status(path, protect=["/api"]) == REFUSED


def test_words_of_a_rule_may_repeat():
    assert status("/x\\ab\\ab\\c", protect=["/ab/ab/c"]) == REFUSED
    assert status("//ab.x", protect=["/ab/ab"]) == OPEN


def test_words_of_a_rule_must_be_in_order():
    assert status("/a//b", protect=["/b/a"]) == OPEN
    assert status("/a//b", protect=["/a/a"]) == OPEN
    assert status("/a//x/b", protect=["/a/b"]) == REFUSED


@for_each("rule", ["/my files", "GET /my files", "/my files/"])
def test_rule_with_a_space_covers_its_path(rule):
    covered = ["/my files", "/my files/x y", "/MY Files", "/my%20files", "//my files",
               "/my files.txt", "/my\xa0files/"]
    others = ["/my", "/my filesx", "/my_files", "/files", "/my/files", "/x/my files"]

    assert {status(path, protect=[rule]) for path in covered} == {REFUSED}
    assert {status(path, protect=[rule]) for path in others} == {OPEN}


def test_rule_with_a_space_and_capitals_that_are_no_method_is_accepted():
    assert status("/Team HR/x", protect=["/Team HR"]) == REFUSED


@for_each("path", [
    "/pro\u200btected", "/\u00adprotected", "/protected\u202e", "/pro\ufefftected.json",
    "/x/.\u200b./protected", "/\u2060/protected", "/pr\u00f3\u200btected", "/pro%e2%80%8btected",
])
def test_path_with_invisible_characters_is_refused(path):
    assert status(wsgi(path), protect=["/protected"]) == REFUSED


@for_each("path, expected", [
    ("/public/\u200bx", OPEN), ("/public/.\u200b./x", REFUSED), ("/pub\u200blic/x", REFUSED),
    ("/\u200bpublic", REFUSED), ("/\u200b/public", REFUSED), ("/می\u200cخواهم/x", OPEN),
])
def test_exemption_of_a_path_with_invisible_characters(path, expected):
    assert status(wsgi(path), exempt=["/public", "/می\u200cخواهم"]) == expected


def test_invisible_characters_are_all_of_category_cf():
    category = unicodedata.category
    missing = [code for code in range(sys.maxunicode + 1)
               if category(chr(code)) == "Cf" and not wsgi_auth._INVISIBLE.match(chr(code))]

    assert missing == []


@for_each("path", [
    "/public", "/public/", "/public/x", "/public/X y", "/public/café", "/public//x",
    "/public/x;v=1", "/public/a%20b", "/public/x.", "/public/?x",
])
def test_path_that_every_reading_exempts_is_open(path):
    assert status(wsgi(path), exempt=["/public"]) == OPEN


@for_each("path", [
    "", "/", "/publicx", "/x/public", "/public/../secret", "/public%2f..%2fsecret",
    "/public/%2e%2e/secret", "/public/%252e%252e/secret", "/public/..;/secret", "/public/..%3b/x",
    "/public\\..\\secret", "/public/..\\secret", "/public/.. /secret", "/public/..\x01/secret",
    "/public/..\xe2\x80\xa8./secret", "/public/.\xff./secret", "/public/...", "/PUBLIC/x",
    "/public/...json",
    "/Public",
    "//public/x", "/./public", "/public./x", "/public /x", "/public;/x", "/public;x", "/public?x",
    "/public#x", "/public%2fx", "/publi%63/x", "/public%00", "/public\0", "public/x", "\\public",
    "http://h/public", "//h/public", "/pub\x01lic", "/pub\xfflic", "/pub\xfflic/x", "/public\xe9/x",
    "/pub\udce9lic", "/\uff50ublic", "/public/%2525252541", "/public/" + "%41" * 2000,
])
def test_path_that_some_reading_does_not_exempt_is_refused(path):
    assert status(path, exempt=["/public"]) == REFUSED


@for_each("path", [
    "/admin_panel", "/admin-panel", "/admin.panel", "/admin~panel", "/admin;panel", "/admin?panel",
    "/admin#panel", "/admin%panel", "/admin\\panel", "/Admin-Panel", "/admin-panel/x",
    "/admin-panel.json", "/admin-panel.json/", "/admin;panel.json",
])
@for_each("rule", ["/admin_panel", "/admin-panel"])
def test_path_that_differs_in_punctuation_is_protected_with_its_scopes(rule, path):
    rules = {"protect": {"/": (), rule: "admin"}}

    assert status(path, **rules) == REFUSED
    assert status(path, authorization=bearer(), **rules) == FORBIDDEN
    assert status(path, authorization=bearer(scope="admin"), **rules) == OPEN
    assert status("/adminxpanel", authorization=bearer(), **rules) == OPEN


@for_each("app, signer", [("module:app", SIGNER), (None, SIGNER), (print, "k" * 64)])
def test_what_cannot_be_called_or_cannot_verify_is_refused_at_once(app, signer):
    with pytest.raises(TypeError, match="app must be a WSGI application, and signer a TokenSigner"):
        BearerAuthMiddleware(app, signer)


def test_rule_of_many_segments_covers_what_is_below():
    deep = "/a" * 64

    assert status(f"{deep}/{'x/' * 999}", protect=[deep]) == REFUSED
    assert status("/a" * 63 + "/b", protect=[deep]) == OPEN


# --- Every way to write a protected path --------------------------------------------------------


@for_each("path", [
    "/protected", "/protected/", "/protected/deeper", "/protected/Dee per", "/PROTECTED",
    "/protected.json", "/protected.json/", "/protected.tar.gz", "/Protected.JSON", "/protected.a;v",
    "//x/../protected.json", "/x/../protected.json", "/protected.json/x/..", "/@@protected",
    "/protected.json#/x", "/protected.json/#;x", "/protected.json?x/y", "/protected.tar.gz%3f/x",
    "/@@%40%40protected", "/+protected", "/++Protected/", "/+protected.json", "/%2Bprotected",
    "/x/../+protected", "xprotected", "xprotected/deeper", "http:xprotected", "xhttp://h/protected",
    "/+@@protected",
    "/pr\u00f3tected", "/PR\u00d3TECTED", "/prot\u00e9cted.json", "/pro\u0301tected",
    "/@@protected/", "/@@Protected.json", "//@@protected", "/x/../@@protected", "/%40@protected",
    "/pRotected", "//protected", "///protected", "/protected//", "/./protected", "/../protected",
    "/x/../protected", "/x/y/../../protected", "/.../protected", "/x/.. /protected",
    "/x/..../protected", "/. /protected", "/x/..\u2028./protected", "/%2e/protected",
    "/x/%2E%2e/protected", "/x/.%252e/protected", "/x/..;v=1/protected", "/x/..%3bv/protected",
    "/x\\..\\protected", "/x%5c..%5cprotected", "/%70rotected", "/%2570rotected",
    "/%252570rotected", "/%25252570rotected", "/%2525252570x", "/pro%74ected", "/PRO%54ECTED",
    "%2fprotected", "/%2fprotected", "/protected%2fdeeper", "/x%2f..%2fprotected", "\\protected",
    "\\\\protected", "/\\protected", "/protected\\deeper", "/protected%5cdeeper", "/protected;",
    "/protected;v=1", "/protected;/deeper", "/protected%3bv=1", "/;v=1/protected", ";v=1/protected",
    "/;a\\b/protected", "/;a%2fb/protected", "http://h/protected", "HTTPS://user@h:80/protected",
    "ws+x.y-z://h/protected", "http:/protected", "http:///protected", "http:protected",
    "http:////protected", "http:%2f%2fprotected", "//host/protected", "\\\\host\\protected",
    "////h/protected", "http://x//h/protected", "http:http://h/protected", "/;x/h/protected",
    "/ /h/protected", "//a\\b/protected", "//a%2fb/protected", "http://a%2fb/protected",
    "http://a%5Cb/protected", " http://h/protected", "protected", "protected/deeper", " protected",
    "/protected?", "/protected?x=1", "/protected#x", "/protected/?x", "/protected%3fx",
    "/protected%23x", "/protected?x/../y", "/protected.", "/protected..", "/protected./deeper",
    "/protected%2e", "/protected ", "/protected\t", "/ protected", "/protected. .", "/protected . ",
    "/protected%20", "/protected /deeper", "/protected\u00a0", "/protected\u3000",
    "/protected\u2028", "/protected\u2028.", "/protected\u1680.", "/protected\x85",
    "/pro\x01tected", "/\x1fprotected", "/pro\x1ftected", "/pro\x9ftected", "/protected\x7f",
    "/pro%01tected", "/pro\ttected",
    "/protected\n", "/protected\r\n", "/protected\nx", "/protected\r\nx", "/protected\0",
    "/\0protected", "/protected%00.html", "/protected%2500", "/x\0", "/\uff50rotected",
    "/protec\uff54ed", "\uff0fprotected", "/x/\u2025/protected", "/\uff05\uff17\uff10rotected",
    "/protected\uff1bx",
])
def test_path_that_some_application_reads_as_protected_is_refused(path):
    assert status(wsgi(path), protect=["/protected"]) == REFUSED


@for_each("path", [
    "/pro\xfftected", "/pro\xc3tected", "/\x80protected", "/protected\xff", "/protected\xe3\x81",
    "/%ffprotected", "/pro%c3tected", "/pro%25fftected", "/x/.\xff./protected",
    "/protected\xa0", "/protected%a0", "/pro\x9ftected", "/pro%85tected", "/pro\udcfftected",
])
def test_path_with_bytes_that_are_not_utf8_is_refused(path):
    assert status(path, protect=["/protected"]) == REFUSED


@for_each("path", [
    "/prot\xc3\xbfected",  # lower-cased, \xe3\xbf is a beginning that utf-8 "ignore" drops
    "/PROT\xc3\xa1ECTED",  # and so is \xc3\xc1, upper-cased
    "/protected\xc3\xa0", "/protected\xc3\x85",  # stripped, what is left of it is dropped
    "/prot\xc3\x85ected",  # and without its control character
    "/x/..\xc3\xbf/protected",
])
def test_path_changed_as_latin1_and_then_read_as_utf8_is_refused(path):
    assert status(path, protect=["/protected"]) == REFUSED


@for_each("rule, path", [
    ("/mañana", "/mañana"), ("/mañana", "/MAÑANA"), ("/mañana", "/man\u0303ana"),
    ("/mañana", "/ma%C3%B1ana"), ("/mañana", "/ma%25c3%25b1ana"), ("/mañana", "/ma%f1ana"),
    ("/mañana", "/man%cc%83ana"), ("/Mañana", "/mañana"), ("/日本", "/%E6%97%A5本/x"),
    ("/straße", "/STRASSE"), ("/STRASSE", "/straße"), ("/secret", "/\u017fecret"),
    ("/kelvin", "/\u212aelvin"), ("/file", "/\ufb01le"), ("/admin", "/adm\u0131n"),
    ("/admin", "/adm\u0130n"), ("/ADMIN", "/adm\u0131n"), ("/αΐ", "/ΑΪ\u0301"),
])
def test_name_in_another_form_of_unicode_is_refused(rule, path):
    assert status(wsgi(path), protect=[rule]) == REFUSED


@for_each("path", [
    "/ma\xc3%b%31ana", "/ma%c3%25b1ana", "/ma%25c3%b%31ana", "/ma\xc3\xef\xbc\x85b1ana",
    "/ma\xc3\x7f\xb1ana", "/ma%c3%01%b1ana", "/ma\xc3\xad\xb1ana"])
def test_letter_with_something_between_its_bytes_is_refused(path):
    """An application that decodes or removes it, and only then reads UTF-8, finds /mañana."""
    assert status(path, protect=["/mañana"]) == REFUSED


def test_name_of_latin1_with_other_punctuation_is_refused():
    assert status("/a\xf1o-nuevo", protect=["/año_nuevo"]) == REFUSED


@for_each("path", [
    "/public/.\xff./x", "/public/.\xc3\xbf./x", "/public/.%C3%BF./x", "/public/\xe9../x",
    "/public/.\xc3\xa9/x",
])
def test_exemption_that_an_application_without_such_bytes_climbs_out_of_is_refused(path):
    assert status(path, exempt=["/public"]) == REFUSED


@for_each("path", ["/public/é", "/public/日本/x.jpg", "/публика", "/публика/x"])
def test_exemption_of_names_beyond_ascii_is_open(path):
    assert status(wsgi(path), exempt=["/public", "/публика"]) == OPEN


def test_name_with_half_of_a_character_encoded_is_refused():
    assert status("/ma\xc3%b1ana", protect=["/mañana"]) == REFUSED


def test_name_in_characters_that_are_no_bytes_is_refused():
    assert status("/ma\u00f1ana\u2028", protect=["/mañana"]) == REFUSED


@for_each("path", [
    "/x;a%2fb/protected", "/x;a\\b/protected", "/x;a%2fb;c%2fd/protected/deeper",
    "/X;a%5cb/protected",
])
def test_parameters_that_hold_a_slash_are_no_segments(path):
    assert status(path, protect=["/x/protected"]) == REFUSED


@for_each("path", [
    "/" + "%25" * 21_845, "/" + "../" * 21_845 + "protected", ";" * 65_536,
    "/" * 65_536 + "protected", "/x" + ";" * 65_536, "/" + "%" * 65_536, "/" + "\\" * 65_536,
    "/" + "\xff" * 65_536, "/public/" + "\u0301" * 65_536, "/protected/" + "a" * 65_536,
    "/protected" + "/" * 65_536,
])
def test_path_that_is_long_and_odd_is_refused(path):
    assert status(path, protect=["/protected"]) == REFUSED
    assert status(path, authorization="Bearer x", protect=["/protected"]) == REFUSED


# --- Attributes, handlers and streams ------------------------------------------------------------


@for_each("path", [
    "/public/__self__", "/public/__self__/", "/public/__self__/x", "/public/--self--/x",
    "/public/._self_./x", "/public/~~func~~/__self__/x", "/public/__SELF__/x", "/public/__self_;/x",
    "/public/;_self__/x", "/public/__self__;v=1/x", "/public/__self__./x", "/public/%5f_self__/x",
    "/public/__sel%66__/x", "/public/__self\x01__/x", "/public/ __self__ /x",
    "/public/a?__self__/x",
    "/public/__self__\\x", "/public/x/__wrapped__", "/public/__thisclass__", "/public/_é_self__",
    "/public/__name__/__self__", "/public//__self__",
])
def test_exemption_above_an_attribute_is_refused(path):
    assert status(wsgi(path), exempt=["/public", "/public/__name__"]) == REFUSED


@for_each("path", [
    "/x/__self__/protected", "/x/--self--/protected", "/index/__self__/protected/x",
    "/__class__/protected", "/x/__self__/y/__self__/PROTECTED", "/__protected__/protected.json",
])
def test_path_that_leads_to_the_words_of_a_rule_over_an_attribute_is_refused(path):
    assert status(path, protect=["/protected"]) == REFUSED
    assert status(path, protect=["/protected/protected"]) == OPEN


def test_path_with_an_attribute_needs_the_scopes_of_all_rules_that_it_contains():
    protect = {"/": "user", "/public": (), "/admin": "admin"}

    answer = call(guard(protect=protect), "/public/__self__/admin", authorization=bearer())

    assert answer.headers["WWW-Authenticate"].endswith('scope="admin user"')


@for_each("path", [
    "/public/__x", "/public/x__", "/public/____", "/public/x__y__", "/public/_self_/x",
    "/public/[[...slug]]/x", "/public/__init__.py", "/public/--flag--x", "/public/__x-y",
    "/public/__" + "x" * 50 + "__",
])
def test_exemption_of_names_that_are_no_attributes_is_open(path):
    assert status(path, exempt=["/public"]) == OPEN


def test_rules_may_contain_attributes():
    rules = {"protect": ["/", "/__health__/x"], "exempt": ["/__health__", "/a/__b__/c"]}
    opened = ["/__health__", "/__health__/", "/__health__/y", "/a/__b__/c", "/a/__b__/c/d"]
    closed = ["/__health__/x", "/__health__/__self__", "/a/__b__", "/x/__health__", "//__health__",
              "/a/__b__/c/__d__", "/--health--", "/__health__/..", "/__health__/%5f_self__"]

    assert {status(path, **rules) for path in opened} == {OPEN}
    assert {status(path, **rules) for path in closed} == {REFUSED}
    assert status("/__debug__/x", protect=["/__debug__"]) == REFUSED


@for_each("path", [
    "/default/a/b", "/_default/a/b", "/-default/a/b/", "/index/a/b/c", "/a/default/b",
    "/default/index/a/b", "/default/a/index/b.json",
    "/a/get_one/b", "/a/_default/b.json", "/A/Default/B", "/index/default/a/b", "/a/%69ndex/b",
])
def test_path_with_the_name_of_a_handler_is_refused(path):
    assert status(path, protect=["/a/b", "/index/a/b"]) == REFUSED
    assert status(path, exempt=["/a", "/index"], protect=["/", "/a/b", "/index/a/b"]) == REFUSED


@for_each("path", [
    "/index", "/index/x", "/x/index/a/b", "/a/index", "/a/default/x/b", "/defaults/a/b",
    "/x/default/a/b", "/index" * 20_000, "/x" * 100 + "/default/a/b",
])
def test_path_with_the_name_of_a_handler_elsewhere_is_open(path):
    assert status(path, protect=["/a/b"]) == OPEN
    assert status("/public/index/x", exempt=["/public"]) == OPEN
    assert status("/default/x", exempt=["/default"]) == OPEN


@for_each("path", [
    "/secret.txt::$DATA", "/secret.txt::$data", "/secret.txt%3a:$DATA", "/secret.txt.::$DATA",
    "/secret.txt:$I30:$INDEX_ALLOCATION/x", "/Secret.txt::$INDEX_ALLOCATION/x",
])
def test_stream_of_a_protected_file_is_refused(path):
    assert status(path, protect=["/secret.txt"]) == REFUSED
    assert status(path, protect=["/secret.txt/x/y"]) == OPEN


# --- Mounts, environ, headers -------------------------------------------------------------------


@for_each("rule, mount, path", [
    ("/protected", "/app", "/protected"),
    ("/protected", "/app", "/../protected"),
    ("/protected", "/protected", ""),
    ("/protected", "/protected", "/x"),
    ("/protected", "/Protected", "/x"),
    ("/protected", "/x/..", "/protected"),
    ("/protected", "/protected", "x"),
    ("/protected", "/protected", "@@"),
    ("/protected", "/protected", "%40%40"),
    ("/app/protected", "/app", "/protected"),
    ("/app/protected", "/app", "/protected/deeper"),
    ("/app/protected", "/app", "//protected"),
    ("/app/protected", "/app", "/PROTECTED"),
    ("/app/protected", "/app/", "/protected"),
    ("/app/protected", "/app", "//host/protected"),
    ("/app/protected", "/app", "http://host/protected"),
    ("/app/protected", "/app", "protected"),
    ("/app", "/app", ""),
    ("/", "/app", ""),
])
def test_mount_and_path_in_either_reading_are_refused(rule, mount, path):
    assert status(path, mount=mount, protect=[rule]) == REFUSED


@for_each("exempt", [["/public"], ["/app/public"]])
def test_mounted_path_that_one_reading_exempts_is_refused(exempt):
    assert status("/public", mount="/app", exempt=exempt) == REFUSED


def test_mounted_path_that_both_readings_exempt_is_open():
    assert status("/public", mount="/app", exempt=["/public", "/app/public"]) == OPEN


@for_each("mount", ["/app", wsgi("/été")])
@for_each("path", ["/public//x", "/public/%41", "/public/x;v=1"])
def test_mounted_path_that_is_odd_below_both_exemptions_is_open(mount, path):
    exempt = ["/public", "/app/public", "/été/public"]

    assert status(path, mount=mount, exempt=exempt) == OPEN
    assert status(path, mount=mount, exempt=exempt[1:]) == REFUSED


@for_each("mount, path", [
    ("/app//", "/public//x"), ("/%61pp", "/public/%41"), ("/x/..", "/public/x;v=1"),
    ("/app", "*"), ("/app", "http://h/public"),
])
def test_mounted_path_that_is_odd_and_not_predictable_is_refused(mount, path):
    assert status(path, mount=mount, protect=["/a"]) == REFUSED


@for_each("rule", ["/été/mañana", "/x/mañana"])
def test_mount_and_path_that_are_encoded_differently_are_refused(rule):
    mount = rule[:4].encode("latin-1").decode("latin-1")

    assert status("/" + wsgi("/mañana"), mount=mount, protect=[rule]) == REFUSED


def test_asterisk_below_a_mount_that_contains_the_words_of_a_rule_is_refused():
    assert status("*", "OPTIONS", mount="/x/a/b", protect=["/a"]) == REFUSED


def test_mounted_path_that_no_reading_protects_is_open():
    assert status("/public", mount="/app", protect=["/protected", "/app/protected"]) == OPEN


def test_mounted_path_needs_the_scopes_of_both_readings():
    guarded = guard(protect={"/x": "read", "/app/x": "read write"})

    answer = call(guarded, "/x", SCRIPT_NAME="/app", authorization=bearer(scope="read"))

    assert answer.status == FORBIDDEN
    assert answer.headers["WWW-Authenticate"].endswith('scope="read write"')


def test_environ_that_is_empty_is_refused():
    status, body = call_with_only({})

    assert status == REFUSED
    assert body


def test_environ_that_is_empty_reaches_an_open_application():
    assert call_with_only({}, protect=["/protected", "POST /"]) == (OPEN, b"nobody")


def test_environ_without_path_but_with_token_is_admitted():
    assert call_with_only({"HTTP_AUTHORIZATION": bearer()}) == (OPEN, b"alice")


OVERRIDES = [
    "HTTP_X_ORIGINAL_URL", "HTTP_X_REWRITE_URL", "HTTP_X_FORWARDED_PREFIX", "HTTP_X_FORWARDED_URI",
    "HTTP_X_FORWARDED_PATH", "HTTP_X_SCRIPT_NAME", "REQUEST_URI", "RAW_URI", "PATH_TRANSLATED",
]


@for_each("key", OVERRIDES)
def test_path_in_any_other_key_is_ignored(key):
    guarded = guard(protect=["/protected"])

    assert call(guarded, "/protected", **{key: "/public"}).status == REFUSED
    assert call(guarded, "/public", **{key: "/protected"}).status == OPEN


@for_each("key", [
    "HTTP_X_HTTP_METHOD_OVERRIDE", "HTTP_X_HTTP_METHOD", "HTTP_X_METHOD_OVERRIDE",
    "HTTP_X_FORWARDED_METHOD", "HTTP_X_ORIGINAL_METHOD",
])
def test_method_in_any_other_key_is_ignored(key):
    guarded = guard(protect=["POST /a"])

    assert call(guarded, "/a", "POST", **{key: "GET"}).status == REFUSED
    assert call(guarded, "/a", "GET", **{key: "POST"}).status == OPEN


# --- The cache -------------------------------------------------------------------------------


def test_guard_caches_a_bounded_number_of_short_paths_and_refuses_all_alike():
    guarded = bare_guard(protect=["/api", "POST /articles"])
    paths = [f"/api/{number}" for number in range(2 * PATH_CACHE_SIZE)]

    for path in [*paths, "/api/" + "x" * 5000, "/api/" + "x" * 5000]:
        assert call(guarded, path).status == REFUSED
    for _ in range(2):
        assert call(guarded, "/articles").status == OPEN
        assert call(guarded, "/articles", "POST").status == REFUSED
        assert call(guarded, "/x", SCRIPT_NAME="/api").status == REFUSED
        assert call(guarded, "/x").status == OPEN

    known = guarded._cached_access.cache_info()
    assert (known.currsize, known.maxsize) == (PATH_CACHE_SIZE, PATH_CACHE_SIZE)
    assert known.hits == 4


@for_each("marks, expected", [
    ("\u0300" * 30, OPEN), ("\u0300" * 31, REFUSED), ("\u0300\u0323" * 500, REFUSED),
    ("😀" * 40, OPEN), ("👨\u200d👩\u200d👧" * 20, OPEN), ("e\u0301" * 40, OPEN)])
def test_path_with_many_combining_marks_is_refused_unread(marks, expected):
    """Normalizing sorts the marks of a character in quadratic time."""
    assert status(wsgi("/a" + marks), protect=["/protected"]) == expected


@pytest.mark.parametrize("path, expected", [
    ("/a" + ";" * 63, OPEN), ("/a" + ";" * 64, REFUSED), ("//" + "a/" * 62, OPEN),
    ("//" + "a/" * 63, REFUSED), ("/a" + "%3b" * 64, REFUSED), ("/\ufdfa" * 30, OPEN),
    ("/a" + "\ufdfa" * 300, REFUSED),  # NFKC makes 18 characters of this one
], ids=shown)
def test_odd_path_with_many_separators_or_characters_is_refused_unread(path, expected):
    assert status(wsgi(path), protect=["/protected"]) == expected
