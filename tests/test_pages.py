"""Sign-in with a browser: the pages, the cookie and its session, and forms of other sites."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from webtest import TestApp

from jwtserver import (
    OTP_STEP_SECONDS, SettingsError, Store, StoreError, create_app, new_grant, otp_code)
from support import KEY, PASSWORD, bearer, for_each, hello, sign_in, user
from wsgi_auth import TokenSigner, decode

HTML = "text/html,application/xhtml+xml,*/*;q=0.8"
SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
CROSS_SITE = {"Sec-Fetch-Site": "cross-site"}
USERS = [user("alice", "read write"), user("bob"), user("<b>'\"&"), user("mallory", disabled=1)]


@pytest.fixture
def browse(settings, store, clock):
    """Makes a browser that visits the service, with an application or the demo."""
    def browse(app=None, scheme="http", **changes):
        service = create_app(settings._replace(**changes), app=app, clock=clock)
        return TestApp(service, {"HTTP_ACCEPT": HTML, "wsgi.url_scheme": scheme,
                                 "HTTP_HOST": "tool.example", "REMOTE_ADDR": "192.0.2.1"})

    return browse


@pytest.fixture
def browser(browse):
    return browse()


def submit(browser, name="alice", password=PASSWORD, page="/protected", **options):
    """Fill in the form of the login page and submit it."""
    form = browser.get("/login", {"next": page}).form
    form["username"], form["password"] = name, password
    return form.submit(**options)


def the_cookie(response):
    """Name, value and attributes of the one cookie that a response sets."""
    (header,) = response.headers.getall("Set-Cookie")
    pair, *attributes = header.split("; ")
    return (*pair.split("=", 1), attributes)


class Elements(HTMLParser):
    """Name and attributes of each element of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))


# --- The pages ----------------------------------------------------------------------------------


def pages_of(browser):
    """A response of every page, for someone who is signed in or not."""
    yield from (browser.get(path) for path in ("/", "/login"))
    yield browser.post("/login", {"username": "alice"}, status=401)
    yield browser.post("/login", {"username": "alice", "password": "x"}, status=401)
    yield browser.post("/login", headers=CROSS_SITE, status=403)
    yield browser.post_json("/login", {}, status=415)
    yield browser.put("/login", status=405)
    yield browser.post("/logout", status=401)
    yield browser.post("/", status=405)
    submit(browser)
    yield browser.post("/logout", headers=CROSS_SITE, status=403)
    yield from (browser.get(path) for path in ("/", "/login"))


def test_every_page_has_headers_that_confine_it(browser):
    for page in pages_of(browser):
        style = re.search("<style>(.*?)</style>", page.text, re.DOTALL)[1]
        style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

        assert page.content_type == "text/html" and page.charset == "utf-8"
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["X-Frame-Options"] == "DENY"
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert page.headers["Referrer-Policy"] == "same-origin"
        assert set(page.headers["Content-Security-Policy"].split("; ")) == {
            "default-src 'none'", "frame-ancestors 'none'", "form-action 'self'",
            "base-uri 'none'", f"style-src 'sha256-{style_hash}'"}


def test_every_page_has_a_language_a_title_and_labels_and_no_script(browser):
    for page in pages_of(browser):
        elements = Elements(page.text).elements
        tags = [tag for tag, _ in elements]
        labels = {attributes["for"] for tag, attributes in elements if tag == "label"}

        assert ("html", {"lang": "en"}) in elements
        assert {"title", "h1", "main"} <= set(tags) and "script" not in tags
        assert not any(name.startswith("on") or name in ("style", "src")
                       for _, attributes in elements for name in attributes)
        assert labels == {attributes["id"] for tag, attributes in elements
                          if tag == "input" and attributes.get("type") != "hidden"}


def test_error_page_says_what_is_wrong_and_leads_to_the_sign_in_page(browse):
    browser = browse(prefix="/auth")
    for response, message in [
        (browser.post("/auth/logout", status=401), "You are not signed in. Nothing has changed."),
        (browser.post("/auth/login", headers=CROSS_SITE, status=403),
         "Cross-origin request refused."),
    ]:
        assert f'<p class="error">{message}</p>' in response
        assert response.click("Go to the sign-in page").request.path == "/auth/login"


@pytest.mark.parametrize("prefix", ["", "/auth"])
@pytest.mark.parametrize("path", ["/logout", "/password", "/sessions/" + "0" * 32])
def test_refusal_of_a_form_of_the_account_page_is_a_page(browse, path, prefix):
    browser = browse(prefix=prefix)

    assert "You are not signed in." in browser.post(prefix + path, status=401)
    assert browser.post(prefix + path, headers={"Accept": "*/*"}, status=401).json


def test_refusal_of_the_rate_limit_is_a_page(browse):
    browser = browse(rate_limit="1/60")
    browser.get("/login")

    page = browser.get("/login", status=429)

    assert "<h1>Too Many Requests</h1>" in page and page.headers["Retry-After"] == "60"
    assert "Too many requests. Try again in a minute.<" in page
    assert browser.head("/login", status=429).body == b""
    assert "<h1>" in browser.post("/logout", status=429)
    assert browser.post("/logout", headers={"Accept": "*/*"}, status=429).json
    assert browser.get("/protected", status=429).json


def test_refusal_of_the_guard_is_a_page_at_every_form_of_the_account_page(browser):
    for path in ("/logout", "/password", "/sessions/" + "0" * 32):
        assert "You are not signed in." in browser.post(path, status=401), path
        assert browser.post(path, headers={"Accept": "*/*"}, status=401).json


@pytest.mark.parametrize("prefix", ["", "/auth"])
def test_person_who_opens_the_address_of_a_form_is_led_on(browse, prefix):
    browser = browse(prefix=prefix)
    form = browser.get(f"{prefix}/login").form
    form["username"], form["password"] = "alice", PASSWORD
    form.submit()

    page = browser.get(f"{prefix}/password", status=405)
    assert page.click("Go to your account").request.path == f"{prefix}/login" and not page.forms
    page = browser.get(f"{prefix}/logout", status=405)
    assert "User name" in page.form.submit(status=303).follow()


def test_refused_form_of_another_origin_is_logged_with_both_names(browser, caplog):
    headers = {"Origin": "http://evil\x1b.example"}
    browser.post("/login", headers=headers, status=403)
    submit(browser)
    browser.post("/logout", headers=headers, status=403)

    line = r"Refused a form with the Origin http://evil\x1b.example; this site is tool.example"
    assert caplog.messages.count(line) == 2


def test_error_of_the_database_is_a_page(browser, store):
    submit(browser)
    with store.database.transaction() as connection:
        connection.execute("DROP TABLE sessions")

    assert "The database cannot answer." in browser.post("/logout", status=503)


def test_sign_in_of_a_busy_server_gets_a_page(browser):
    page = browser.post("/login", {"username": "alice", "password": PASSWORD}, status=503,
                        extra_environ={"jwtserver.start_slow_response": lambda: False})

    assert "Too many sign-ins at once." in page and page.headers["Retry-After"] == "10"


def test_sign_out_that_is_exempt_from_the_guard_gets_a_page(browse):
    page = browse(exempt=["POST /logout"]).post("/logout", status=401)

    assert "You are not signed in." in page


def test_internal_error_is_a_page(browser, clock, caplog):
    clock.now = None

    page = browser.post("/login", {"username": "alice", "password": PASSWORD}, status=500)

    assert "Internal server error." in page and "TypeError" in caplog.text


def test_error_for_a_program_is_json_except_at_the_login_page(browser):
    program = {"Accept": "*/*"}

    assert browser.post("/logout", headers=program, status=401).json["success"] is False
    assert browser.post("/", headers=program, status=405).json["success"] is False
    assert "<h1>" in browser.put("/login", headers=program, status=405)


def test_login_form_helps_password_managers_and_keyboards(browser):
    elements = Elements(browser.get("/login").text).elements
    inputs = {attributes["name"]: attributes for tag, attributes in elements if tag == "input"}

    assert inputs["username"]["autocomplete"] == "username" and "autofocus" in inputs["username"]
    assert inputs["password"]["autocomplete"] == "current-password"
    assert inputs["password"]["type"] == "password" and "required" in inputs["password"]


def test_start_page_shows_who_is_signed_in(browser):
    assert "Nobody is signed in" in browser.get("/")
    submit(browser)
    page = browser.get("/")
    assert "<strong>alice</strong>" in page
    page.form.submit(status=303)
    assert "Nobody is signed in" in browser.get("/")


def test_account_page_leads_to_the_page_that_was_asked_for(browser):
    submit(browser)

    page = browser.get("/login", {"next": "/protected?a&b"})
    assert page.click("Continue to /protected").request.path_qs == "/protected?a&b"
    for other_site in OTHER_SITES:
        assert 'href="/"' in browser.get("/login", {"next": other_site}), other_site


def test_start_page_is_json_for_programs(browser):
    response = browser.get("/", headers={"Accept": "*/*"})

    assert "GET /protected" in response.json["endpoints"]
    assert response.headers["Vary"] == "Accept"


def test_page_of_an_invalid_cookie_shows_nobody(browser):
    browser.set_cookie("jwtserver", "x")

    assert "Nobody is signed in" in browser.get("/")
    assert "Sign in" in browser.get("/login")


def test_authorization_header_signs_nobody_in_to_a_page(browser):
    token = sign_in(browser).json["token"]

    assert "Nobody is signed in" in browser.get("/", headers=bearer(token))


# --- Signing in ---------------------------------------------------------------------------------


def test_person_signs_in_returns_to_the_page_and_signs_out(browser):
    asked = browser.get("/protected?x=1", status=303)
    assert asked.location.endswith("/login?next=/protected%3Fx%3D1")

    form = asked.follow().form
    form["username"], form["password"] = "alice", PASSWORD
    signed_in = form.submit(status=303)
    assert signed_in.headers["Location"] == "/protected?x=1"
    assert signed_in.follow().json == {"message": "Welcome to the protected page"}

    account = browser.get("/login")
    assert "<strong>alice</strong>" in account
    signed_out = account.forms[0].submit(status=303)
    assert signed_out.headers["Location"] == "/login"
    assert the_cookie(signed_out)[1] == ""
    assert signed_out.headers["Clear-Site-Data"] == '"cache"'
    browser.get("/protected", status=303)


def test_cookie_has_its_attributes_and_a_token_of_its_own_session(browser, settings, clock):
    name, token, attributes = the_cookie(submit(browser, status=303))

    claims = decode(token, KEY, now=clock())
    assert name == "jwtserver"
    assert attributes == ["Max-Age=1209600", "Path=/", "HttpOnly", "SameSite=Lax"]
    assert claims["exp"] - claims["iat"] == settings.session_lifetime
    assert (claims["sub"], claims["scope"]) == ("alice", "read write")


def test_cookie_over_https_is_secure_and_has_the_host_prefix(browse):
    browser = browse(scheme="https")

    name, token, attributes = the_cookie(submit(browser, status=303))

    assert name == "__Host-jwtserver" and attributes[-1] == "Secure"
    browser.get("/protected", headers={"Cookie": f"__Host-jwtserver={token}"}, status=200)
    browser.get("/protected", headers={"Cookie": f"jwtserver={token}"}, status=303)


def test_cookie_of_another_name(browse):
    assert the_cookie(submit(browse(cookie="tool")))[0] == "tool"


def test_session_of_a_browser_ends_with_all_others_of_the_user(browser, store):
    submit(browser)
    browser.get("/protected", status=200)

    store.set_password("alice", "x")

    browser.get("/protected", status=303)


def test_session_of_a_browser_ends_with_its_lifetime(browser, clock, settings):
    submit(browser)

    clock.now += settings.session_lifetime - 1
    browser.get("/protected", status=200)
    clock.now += 1 + 10
    browser.get("/protected", status=303)


def test_second_sign_in_ends_the_session_of_the_first(browse):
    browser, other = browse(), browse()
    _, first, _ = the_cookie(submit(browser))
    _, elsewhere, _ = the_cookie(submit(other))

    second = browser.post("/login", {"username": "bob", "password": PASSWORD}, status=303)

    assert the_cookie(second)[1] != first
    other.get("/protected", headers={"Cookie": f"jwtserver={first}"}, status=303)
    other.get("/protected", headers={"Cookie": f"jwtserver={elsewhere}"}, status=200)


def test_failed_sign_in_keeps_the_session(browser):
    submit(browser)

    browser.post("/login", {"username": "alice", "password": "x"}, status=401)

    browser.get("/protected", status=200)


@for_each("fields, shown", [
    ({}, ["Enter your user name.", "Enter your password."]),
    ({"username": "alice"}, ["Enter your password."]),
    ({"password": PASSWORD}, ["Enter your user name."]),
    ({"username": "alice", "password": "x"}, ["The user name or the password is wrong."]),
    ({"username": "nobody", "password": "x"}, ["The user name or the password is wrong."]),
    ({"username": "mallory", "password": PASSWORD}, ["The user name or the password is wrong."]),
    ({"username": "\0", "password": "x"}, ["The user name or the password is wrong."]),
])
def test_form_comes_back_with_the_error_beside_its_field(browser, fields, shown):
    page = browser.post("/login", {"next": "/protected", **fields}, status=401)

    inputs = [attributes for tag, attributes in Elements(page.text).elements if tag == "input"]
    described = [element["aria-describedby"] for element in inputs if "aria-invalid" in element]
    assert [re.search(f'id="{name}">(.*?)<', page.text)[1] for name in described] == shown
    assert page.form["next"].value == "/protected"
    assert page.form["password"].value == ""
    assert "Set-Cookie" not in page.headers


def test_locked_out_person_sees_the_form_and_when_to_try_again(browser, clock):
    for _ in range(5):
        submit(browser, password="x", status=401)

    page = submit(browser, status=429)
    assert "Too many failed sign-ins. Try again in 15 minutes." in page
    assert page.headers["Retry-After"] == "900"

    clock.now += 850
    assert "Try again in a minute." in submit(browser, status=429)


def test_everything_that_is_shown_is_escaped(browser, store, clock):
    name = "<b>'\"&"
    shown = "&lt;b&gt;&#x27;&quot;&amp;"

    page = browser.post("/login", {"username": name, "password": "x", "next": f"/{name}"},
                        status=401)
    assert f'value="{shown}"' in page and f'value="/{shown}"' in page and name not in page.text
    assert f'value="/{shown}"' in browser.get("/login", {"next": f"/{name}"})
    submit(browser, name)
    for path in ("/", "/login"):
        assert f"<strong>{shown}</strong>" in browser.get(path)
    store.open_session(new_grant(user(name), 60, clock(), label=name), clock())
    assert f"<li>Sign-in, {shown}, " in browser.get("/login")


# Where a browser goes after the sign-in. All of these lead it to another site, or may.
OTHER_SITES = [
    "//evil.example", "///evil.example", "/\\evil.example", "\\\\evil.example", "/\t/evil.example",
    "\t//evil.example", "/\n/evil.example", "/\r\nSet-Cookie: x=y", " //evil.example",
    "https://evil.example", "https:evil.example", "HTTPS:/evil.example", "javascript:alert(1)",
    "data:text/html,x", "evil.example", "http://tool.example@evil.example/", "@evil.example", "",
    "/" + "x" * 2048,
    "?x", "#x", "/\x00/x", "/\x7f", "/caf\xe9", "/ x", "x" * 5000,
]


def test_next_page_is_never_another_site(browser):
    for page in OTHER_SITES:
        browser.reset()
        response = browser.post(
            "/login", {"username": "alice", "password": PASSWORD, "next": page}, status=303)
        assert response.headers["Location"] == "/", page
        browser.reset()
        assert browser.get("/login", {"next": page}).form["next"].value == "/", page


def test_next_page_may_be_any_path_of_this_site(browser):
    for page in ["/", "/a/b?c=d&e=//f", "/a#b", "/%2F%2Fevil.example", "/%09/x", "/~a/();:@=+$,"]:
        browser.reset()
        assert submit(browser, page=page).headers["Location"] == page


# --- Requests of other sites --------------------------------------------------------------------


@pytest.mark.parametrize("headers", [
    CROSS_SITE, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"},
    {"Origin": "null"}, {"Origin": "http://tool.example:81"}], ids=str)
def test_form_of_another_site_changes_nothing(browser, headers):
    fields = {"username": "bob", "password": PASSWORD}
    browser.post("/login", fields, headers=headers, status=403)
    assert not browser.cookies

    submit(browser)
    browser.post("/login", fields, headers=headers, status=403)
    browser.post("/logout", headers=headers, status=403)

    assert "<strong>alice</strong>" in browser.get("/login")


def test_form_of_this_site_is_accepted(browser):
    headers = {"Origin": "http://tool.example"}

    submit(browser, headers=headers, status=303)
    browser.post("/logout", headers=headers, status=303)


@for_each("content_type", [
    "application/json", "text/plain", "multipart/form-data; boundary=x", ""])
def test_login_accepts_only_a_form(browser, content_type):
    browser.post("/login", b'{"username": "alice", "password": "correct horse"}',
                 {"Content-Type": content_type}, status=415)


def test_token_in_the_cookie_does_nothing_for_another_site(browser):
    submit(browser)

    browser.get("/protected", headers=CROSS_SITE, status=200)  # a link from another site
    browser.post("/protected", headers=CROSS_SITE, status=403)


# --- An application of one's own, and the off switch --------------------------------------------


def test_application_behind_the_guard_sees_the_person(browse):
    browser = browse(hello)

    assert browser.get("/any", status=303).location.endswith("/login?next=/any")
    submit(browser)

    response = browser.post("/any", status=200)
    assert response.body == b"alice"
    assert (response.headers["Vary"], response.headers["Cache-Control"]) == ("Cookie", "private")


def test_person_without_a_scope_gets_a_page_and_a_program_gets_json(browse):
    browser = browse(hello, protect={"/": (), "/admin": "admin"})
    submit(browser)

    page = browser.get("/admin/x", status=403)

    assert "You are signed in as alice, but have no access to this page." in page
    assert page.headers["WWW-Authenticate"].endswith('scope="admin"')
    assert page.form.action == "/logout" and '<a href="/login">Go to your account</a>' in page
    for send, headers in [(browser.get, {"Accept": "*/*"}), (browser.post, {}),
                          (browser.get, bearer(browser.cookies["jwtserver"]))]:
        answer = send("/admin/x", headers=headers, status=403)
        assert answer.json == {"success": False, "error": "Insufficient scope"}
        assert answer.headers["WWW-Authenticate"] == page.headers["WWW-Authenticate"]


def test_post_without_a_session_is_refused_and_not_redirected(browse):
    browse(hello).post("/any", {"text": "long"}, status=401)


@pytest.mark.parametrize("cookie", ["jwtserver=x", "jwtserver=x; jwtserver=y", ";"])
@pytest.mark.parametrize("protect", ["/", "/login"])
def test_login_page_is_open_to_everyone_so_no_redirect_repeats(browse, protect, cookie):
    browser, headers = browse(hello, protect=[protect]), {"Cookie": cookie}

    page = browser.get("/login/x", headers=headers, status=303).follow(headers=headers, status=200)
    assert "Sign in" in page
    fields = {"username": "alice", "password": PASSWORD}
    browser.post("/login", fields, headers=headers, status=303)


def test_login_page_is_below_the_prefix(browse):
    browser = browse(hello, prefix="/auth")

    assert browser.get("/login", status=303).location.endswith("/auth/login?next=/login")
    form = browser.get("/auth/login").form
    form["username"], form["password"] = "alice", PASSWORD
    form.submit(status=303)
    assert browser.get("/login").body == b"alice"
    signed_out = browser.get("/auth/login").forms[0].submit(status=303)
    assert signed_out.location.endswith("/auth/login")


def test_optional_rules_of_the_settings(browse):
    browser = browse(hello, optional=["/blog"])

    assert browser.get("/blog").body == b"nobody"
    submit(browser)
    assert browser.get("/blog").body == b"alice"


def test_cookie_off_leaves_no_page_no_cookie_and_no_redirect(browse):
    signed_in = browse()
    _, token, _ = the_cookie(submit(signed_in))
    browser = browse(cookie="off")

    browser.get("/login", status=404)
    browser.post("/login", status=404)
    assert "endpoints" in browser.get("/").json
    browser.get("/protected", headers={"Cookie": f"jwtserver={token}"}, status=401)
    assert "/login" not in browser.get("/openapi.json").json["paths"]
    token = sign_in(browser).json["token"]
    response = browser.post("/logout", headers=bearer(token), status=204)
    assert "Set-Cookie" not in response.headers


@for_each("cookie", ["a b", "a=b", "__Host-a", "é", "a;b", "x" * 65])
def test_cookie_name_that_cannot_be_used_is_an_error(cookie, settings):
    with pytest.raises(SettingsError, match="JWTSERVER_COOKIE must be the name of a cookie"):
        settings._replace(cookie=cookie).checked()


def test_program_with_the_cookie_gets_the_answers_of_programs(browser):
    submit(browser)

    response = browser.post("/logout", headers={"Accept": "*/*"}, status=204)

    assert the_cookie(response)[1:] == ("", ["Max-Age=0", "Path=/", "HttpOnly", "SameSite=Lax"])


def test_person_whose_token_is_too_long_for_a_cookie_is_told_so(browser, store):
    name = "\U00010400" * 150
    store.add_users([user(name, "read " * 400)])

    page = submit(browser, name, status=403)

    assert "too long for a cookie" in page and "Set-Cookie" not in page.headers
    assert store.sessions_of(name, 1_800_000_000) == []


# --- The second factor and the account page -----------------------------------------------------


def test_person_with_a_second_factor_is_asked_for_the_code(browser, store, clock):
    store.set_otp("alice", SECRET, 0)
    code = otp_code(SECRET, int(clock()) // OTP_STEP_SECONDS)

    page = submit(browser, status=401)
    assert "Enter the code of your authenticator app" in page
    assert page.form["password"].value == "" and page.form["next"].value == "/protected"
    assert page.form["otp"].attrs["autocomplete"] == "one-time-code"

    form = page.form
    form["password"], form["otp"] = PASSWORD, "000000"
    page = form.submit(status=401)
    assert "The user name, the password or the code is wrong." in page

    form = page.form
    form["password"], form["otp"] = PASSWORD, code
    assert form.submit(status=303).headers["Location"] == "/protected"
    browser.get("/protected", status=200)


def change_password(browser, old, new, **options):
    forms = browser.get("/login").forms
    form = forms[len(forms) - 1]
    form["password"], form["new_password"] = old, new
    return form.submit(**options)


def test_person_changes_the_password(browser):
    submit(browser)

    changed = change_password(browser, PASSWORD, "battery staple", status=303)
    assert "Your password has been changed." in changed.follow()
    assert "has been changed" not in browser.get("/login")
    browser.get("/protected", status=200)
    browser.reset()
    submit(browser, status=401)
    submit(browser, password="battery staple", status=303)


def test_account_page_shows_the_error_beside_the_field(browser):
    submit(browser)

    page = change_password(browser, "wrong", "battery staple", status=401)
    assert re.search('id="password-error">(.*?)<', page.text)[1] == (
        "The current password is wrong.")
    assert "autofocus" in page.forms[len(page.forms) - 1]["password"].attrs
    page = change_password(browser, PASSWORD, "x" * 2000, status=400)
    assert "cannot be used" in re.search('id="new_password-error">(.*?)<', page.text)[1]
    for _ in range(4):
        change_password(browser, "wrong", "battery staple", status=401)
    page = change_password(browser, PASSWORD, "battery staple", status=429)
    assert page.headers["Retry-After"] == "900"
    assert "Try again in 15 minutes.<" in page


def test_person_ends_another_session(browse):
    browser, other = browse(), browse()
    submit(other)
    submit(browser)
    page = browser.get("/login")
    assert page.text.count("(this one)") == 1
    form = page.forms[1]

    assert form.submit(status=303).headers["Location"] == "/login"

    other.get("/protected", status=303)
    assert form.submit(status=303).headers["Location"] == "/login"  # it has ended already
    browser.get("/protected", status=200)


def test_form_of_another_site_ends_no_session_and_changes_no_password(browser):
    submit(browser)
    fields = {"password": PASSWORD, "new_password": "battery staple"}

    for path in ("/password", "/sessions/" + "0" * 32):
        page = browser.post(path, fields, headers=CROSS_SITE, status=403)
        assert "Cross-origin request refused." in page
    browser.reset()
    submit(browser, status=303)


def test_person_who_ends_a_session_after_the_own_one_has_ended_gets_a_page(browser, store):
    submit(browser)
    store.end_sessions("alice")

    page = browser.post("/sessions/" + "0" * 32, status=401)

    assert "You are not signed in." in page
    assert browser.post("/sessions/" + "0" * 32, headers={"Accept": "*/*"}, status=401).json


@pytest.mark.parametrize("has_session", [True, False])
def test_token_that_is_not_from_a_sign_in_shows_no_account_page(
    browser, store, clock, has_session,
):
    """A program must not list the sessions of its user with its token in the cookie."""
    claims = {"sub": "alice"}
    if has_session:
        grant = new_grant(store.find_user("alice"), 60, clock(), refreshable=False, machine=1)
        store.open_session(grant, clock())
        claims["sid"] = grant.session.id
    cookie = {"Cookie": f"jwtserver={TokenSigner(KEY, clock=clock).sign(claims)}"}
    browser.get("/protected", headers=cookie, status=200)

    assert "User name" in browser.get("/login", headers=cookie)
    for path in ("/password", "/sessions/" + "0" * 32):
        fields = {"password": "x", "new_password": "y"}
        page = browser.post(path, fields, headers=cookie, status=403)
        assert "Only a user who has signed in can do this." in page
        assert "Sessions" not in page
    if not has_session:
        assert "Sessions" not in browser.post("/logout", headers=cookie, status=400)


def test_error_is_json_if_the_account_page_cannot_be_built(browser, monkeypatch):
    submit(browser)
    form = browser.get("/login").forms[1]
    form["password"], form["new_password"] = "wrong", "battery staple"

    def fail(*arguments):
        raise StoreError("the database has gone")

    monkeypatch.setattr(Store, "sessions_of", fail)

    assert form.submit(status=401).json == {"success": False, "error": "Invalid password"}
