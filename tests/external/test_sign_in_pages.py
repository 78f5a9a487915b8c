"""Sign-in with a browser: the pages, the cookie, and attacks by pages of others, in Chromium."""

import contextlib
import shutil
import time
from urllib.parse import urlencode

import pytest

import jwtserver
from http_support import CERTIFICATE, serving
from support import KEY, PASSWORD, call, store_with, user

webdriver = pytest.importorskip("selenium.webdriver")

from selenium.common.exceptions import WebDriverException  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

LONG_NAME = "W" * jwtserver.MAX_NAME_LENGTH
# Browsers send `Sec-Fetch-Site` only over HTTPS and to this machine. Otherwise, only `Origin` says
# who sent a request. All names below .example lead to this machine.
HOSTS = ["127.0.0.1", "tool.example"]


def is_gone(element):
    """Whether the page of an element has been replaced. Chromium has several errors for that."""
    try:
        element.is_enabled()
    except WebDriverException:
        return True
    return False


class Browser(webdriver.Chrome):
    """One Chromium for all tests of this file."""

    def __init__(self):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser")
        options.accept_insecure_certs = True
        for argument in ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
                         "disable-background-networking", "disable-sync", "disable-dev-shm-usage",
                         "disable-component-update", "disable-features=HttpsUpgrades",
                         "host-resolver-rules=MAP *.example 127.0.0.1"]:
            options.add_argument(f"--{argument}")
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        super().__init__(options, service)
        self.implicitly_wait(10)

    def reset(self):
        """Close all tabs except one, and forget all cookies."""
        first, *others = self.window_handles
        for tab in others:
            self.switch_to.window(tab)
            self.close()
        self.switch_to.window(first)
        self.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def show(self, width, scheme):
        """Show pages as on a screen of this width, in light or dark mode."""
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": 640, "deviceScaleFactor": 1, "mobile": width < 500})
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def wait(self, condition):
        WebDriverWait(self, 10, 0.03).until(lambda _: condition())

    def await_page(self, url):
        self.wait(lambda: self.current_url == url)

    def await_text(self, text):
        self.find_element(By.XPATH, f"//body[contains(., '{text}')]")

    def field(self, name):
        return self.find_element(By.NAME, name)

    def press(self, button, page_stays=False):
        element = self.find_element(By.XPATH, f"//button[.='{button}']")
        element.click()
        if not page_stays:
            self.wait(lambda: is_gone(element))

    def type(self, *keys):
        ActionChains(self).send_keys(*keys).perform()

    def receive_cookie(self, url, cookie):
        self.execute_cdp_cmd("Network.setCookie", {
            "url": url, "httpOnly": True, "sameSite": "Lax", **cookie})

    @property
    def text(self):
        return self.find_element(By.TAG_NAME, "body").text

    def sign_in(self, name="alice", password=PASSWORD, **options):
        self.field("username").clear()
        self.field("username").send_keys(name)
        self.field("password").send_keys(password)
        self.press("Sign in", **options)


@pytest.fixture(scope="module")
def chromium():
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("Chromium is not installed")
    if not shutil.which("chromedriver"):
        pytest.skip("chromium-driver is not installed")
    browser = Browser()
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium):
    chromium.reset()
    return chromium


class Site:
    """An application behind the service, which records the requests that reach it."""

    def __init__(self, tmp_path):
        self.requests = []  # that reached the application
        self.answers = []  # of the service: method, path, status
        self.elsewhere = ""
        database = str(tmp_path / "users.db")
        self.store = store_with(
            database, *(user(name) for name in ("alice", "mallory", LONG_NAME)))
        settings = jwtserver.Settings(database=database, secret=KEY, pbkdf2_iterations=1000)
        self.demo = jwtserver.create_app(settings, store=self.store)
        self._service = jwtserver.create_app(settings, app=self.application, store=self.store)

    def service(self, environ, start_response):
        def start(status, *arguments):
            self.answers.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], int(status[:3])))
            return start_response(status, *arguments)

        is_icon = environ["PATH_INFO"] == "/favicon.ico"  # Chromium asks at any time
        return self._service(environ, start_response if is_icon else start)

    def application(self, environ, start_response):
        path, name = environ["PATH_INFO"], environ.get("REMOTE_USER")
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
        if path != "/favicon.ico":
            self.requests.append((environ["REQUEST_METHOD"], path, name))
        if path == "/elsewhere":
            start_response("302 Found", [("Location", self.elsewhere)])
            return []
        start_response("200 OK", [("Content-Type", "text/html")])
        return [f"<p>private page of {name}: {body}</p>"
                "<form method=post action=/form><button name=a value=b>Send</button></form>"
                .encode()]

    def cookie(self, name="alice"):
        """The cookie of a new session, as /login sets it."""
        body = urlencode({"username": name, "password": PASSWORD}).encode()
        response = call(self._service, "/login", "POST", body,
                        CONTENT_TYPE="application/x-www-form-urlencoded")
        return dict(zip(("name", "value"), response.headers["Set-Cookie"].split(";")[0].split("=")))


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    yield site
    site.store.close()


@contextlib.contextmanager
def port_of(app, **options):
    with serving(app, **options) as server:
        yield server.address[1]


@pytest.fixture
def port(site):
    """The port of the application behind the service."""
    with port_of(site.service) as port:
        yield port


@pytest.fixture
def url(port):
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def pages():
    """Pages of an attacker, by path; and responses with other headers."""
    return {}


@pytest.fixture
def other_port(pages):
    def attacker(environ, start_response):
        page, *headers = pages.get(environ["PATH_INFO"], ["<p>another site</p>"])
        start_response("200 OK", [("Content-Type", "text/html"), *headers])
        return [page.encode()]

    with port_of(attacker) as port:
        yield port


# --- A person signs in --------------------------------------------------------------------------


def test_person_returns_to_the_page_and_stays_signed_in_in_all_tabs(browser, url):
    page = f"{url}/page?a=1&b=%2F#part"
    browser.get(page)
    assert browser.current_url.startswith(f"{url}/login?next=/page")

    browser.sign_in()
    browser.await_page(page)
    browser.refresh()
    assert browser.current_url == page and "private page of alice" in browser.text

    browser.switch_to.new_window("tab")
    browser.get(f"{url}/other")
    browser.await_text("private page of alice")


def test_sign_out_in_one_tab_applies_to_the_other(browser, url, site):
    browser.receive_cookie(url, site.cookie())
    browser.get(f"{url}/page")
    first = browser.current_window_handle

    browser.switch_to.new_window("tab")
    browser.get(f"{url}/login")
    browser.press("Sign out")
    browser.await_page(f"{url}/login")
    browser.switch_to.window(first)
    site.requests.clear()

    browser.press("Send")
    browser.await_text("An authorization header is required")
    browser.get(f"{url}/page")
    assert browser.field("password") and site.requests == []


def test_sign_out_of_an_ended_session_leads_to_the_sign_in_page(browser, url, site):
    browser.receive_cookie(url, site.cookie())
    browser.get(f"{url}/login")
    site.store.end_sessions("alice")

    browser.press("Sign out")
    browser.await_text("You are not signed in.")
    browser.find_element(By.LINK_TEXT, "Go to the sign-in page").click()
    assert browser.field("password")


def test_back_button_shows_nothing_private_after_sign_out(browser, url):
    browser.get(f"{url}/page")
    browser.sign_in()
    browser.await_page(f"{url}/page")
    browser.get(f"{url}/other")
    browser.get(f"{url}/login")
    browser.press("Sign out")
    browser.await_page(f"{url}/login")

    for _ in range(3):
        browser.back()
        assert browser.field("password") and "alice" not in browser.text


def test_wrong_password_and_then_the_right_one(browser, url):
    browser.get(f"{url}/page")
    browser.sign_in(password="wrong")

    browser.await_text("The user name or the password is wrong.")
    assert browser.field("username").get_property("value") == "alice"
    assert browser.switch_to.active_element == browser.field("password")
    assert browser.field("password").get_property("value") == ""

    browser.type(PASSWORD, Keys.ENTER)
    browser.await_page(f"{url}/page")


def test_locked_out_person_learns_how_long_to_wait(browser, url):
    browser.get(f"{url}/page")
    for _ in range(5):
        browser.sign_in(password="wrong")
    browser.sign_in()

    browser.await_text("Too many failed sign-ins. Try again in 15 minutes.")


def test_person_with_a_second_factor_enters_the_code(browser, url, site):
    secret = jwtserver.new_otp_secret()
    site.store.set_otp("alice", secret, 0)
    browser.get(f"{url}/page")

    browser.sign_in()
    browser.await_text("Enter the code of your authenticator app")
    assert PASSWORD not in browser.page_source
    browser.field("password").send_keys(PASSWORD)
    browser.field("otp").send_keys(
        jwtserver.otp_code(secret, int(time.time()) // jwtserver.OTP_STEP_SECONDS))
    browser.press("Sign in")

    browser.await_page(f"{url}/page")


def test_person_ends_another_session_and_changes_the_password(browser, url, site):
    other = site.cookie()["value"]
    browser.get(f"{url}/login")
    browser.sign_in()
    browser.get(f"{url}/login")

    def change_password(password):
        browser.field("password").send_keys(password)
        browser.field("new_password").send_keys("battery staple")
        browser.press("Change password")

    browser.press("End this session")
    browser.await_page(f"{url}/login")
    assert not browser.page_source.count("End this session")
    assert call(site.service, "/page", HTTP_AUTHORIZATION=f"Bearer {other}").status == 401
    change_password("wrong")
    browser.await_text("The current password is wrong.")
    change_password(PASSWORD)
    browser.await_page(f"{url}/login?changed")

    browser.press("Sign out")
    browser.sign_in()
    browser.await_text("The user name or the password is wrong.")
    browser.sign_in(password="battery staple")
    browser.await_page(f"{url}/")


def test_button_to_end_a_session_of_a_person_who_is_signed_out_leads_to_a_page(browser, url, site):
    site.cookie()
    browser.get(f"{url}/login")
    browser.sign_in()
    browser.get(f"{url}/login")
    site.store.end_sessions("alice")

    browser.press("End this session")

    browser.await_text("You are not signed in.")


@pytest.mark.parametrize("host", HOSTS)
def test_application_gets_its_own_form(browser, port, host, site):
    browser.get(f"http://{host}:{port}/page")
    browser.sign_in()
    browser.await_page(f"http://{host}:{port}/page")

    browser.press("Send")

    browser.await_text("private page of alice: a=b")


def test_keyboard_is_enough(browser, url):
    browser.get(f"{url}/page")
    browser.type("alice", Keys.TAB, "wrong", Keys.TAB, Keys.ENTER)
    browser.await_text("is wrong")
    browser.type(PASSWORD, Keys.ENTER)
    browser.await_page(f"{url}/page")

    browser.get(f"{url}/login")
    browser.type(Keys.TAB, Keys.TAB)
    assert browser.switch_to.active_element.text == "Sign out"
    browser.type(Keys.ENTER)
    browser.field("username")


# --- How the pages look and sound ---------------------------------------------------------------


# The lowest contrast of a text (WCAG 2.2, 1.4.3), and whether the page is wider than the screen.
MEASURE = """
    const light = color => {
        const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background = element => {
        const color = getComputedStyle(element).backgroundColor;
        return color == "rgba(0, 0, 0, 0)" ? background(element.parentElement) : color;
    };
    const contrast = element => {
        const pair = [light(getComputedStyle(element).color), light(background(element))];
        return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    };
    return [Math.min(...[...document.querySelectorAll("body *")].map(contrast)),
            document.documentElement.scrollWidth - innerWidth];
"""


def test_pages_fit_the_screen_and_are_legible(browser, site):
    def check(*shown):
        for text in shown:
            assert text in browser.page_source
        for width in (360, 1280):
            for scheme in ("light", "dark"):
                browser.show(width, scheme)
                contrast, excess = browser.execute_script(MEASURE)
                assert contrast >= 4.5 and excess <= 0, (browser.title, width, scheme)

    with port_of(site.demo) as port:
        url = f"http://127.0.0.1:{port}"
        browser.get(f"{url}/")
        check("Nobody is signed in")
        browser.get(f"{url}/login")
        check("User name")
        browser.sign_in(LONG_NAME, "wrong")
        check(LONG_NAME, "is wrong")
        browser.sign_in(LONG_NAME)
        browser.await_page(f"{url}/")
        check(LONG_NAME)
        browser.get(f"{url}/login")
        check(LONG_NAME, "Your account")
        site.store.end_sessions(LONG_NAME)
        browser.press("Sign out")
        check("You are not signed in")


def test_dark_mode_is_dark(browser, url):
    browser.get(f"{url}/login")
    colors = []
    for scheme in ("light", "dark"):
        browser.show(360, scheme)
        colors.append(browser.execute_script(
            "return getComputedStyle(document.body).backgroundColor"))

    assert colors == ["rgb(244, 245, 247)", "rgb(18, 22, 28)"]


def test_screen_reader_announces_each_field_with_its_error(browser, url):
    def described(name):
        node = browser.execute_cdp_cmd("Runtime.evaluate", {
            "expression": f"document.getElementsByName('{name}')[0]"})["result"]["objectId"]
        (node, *_) = browser.execute_cdp_cmd("Accessibility.getPartialAXTree", {
            "objectId": node, "fetchRelatives": False})["nodes"]
        properties = {item["name"]: item["value"].get("value") for item in node["properties"]}
        return (node["name"]["value"], node.get("description", {}).get("value", ""),
                properties["invalid"], properties.get("focused", False))

    browser.get(f"{url}/login")
    assert described("username") == ("User name", "", "false", True)
    assert described("password") == ("Password", "", "false", False)

    browser.sign_in(password="wrong")
    assert described("username") == ("User name", "", "false", False)
    assert described("password") == (
        "Password", "The user name or the password is wrong.", "true", True)


# --- Pages of others ----------------------------------------------------------------------------


FORM = """<form method=post action="{}">
    <input name=username value=mallory><input name=password value="correct horse">
    <button>Send</button></form>"""
OTHER_ORIGINS = [(host, other_host) for host in HOSTS for other_host in (host, "evil.example")]


@pytest.mark.parametrize("host, other_host, sandbox", [
    *((host, other_host, False) for host, other_host in OTHER_ORIGINS),
    *((host, host, True) for host in HOSTS)])
def test_form_of_another_origin_changes_nothing(
    browser, port, other_port, pages, site, host, other_host, sandbox,
):
    url = f"http://{host}:{port}"

    def attack(target):
        """Send a form from a page of the attacker, and return the status of the answer."""
        form = FORM.format(f"{url}{target}")
        pages["/"] = [form if not sandbox else
                      f"<iframe sandbox='allow-forms' srcdoc='{form}'></iframe>"]
        browser.get(f"http://{other_host}:{other_port}/")
        if sandbox:
            browser.switch_to.frame(0)
        site.answers.clear()
        browser.press("Send", page_stays=True)
        browser.wait(lambda: site.answers)
        assert site.answers[0][:2] == ("POST", target)
        return site.answers[0][2]

    # Nobody is signed in: the victim would work in the attacker's account.
    assert attack("/login") == 403
    cookie = site.cookie()
    browser.receive_cookie(url, cookie)
    # Browsers send the cookie from other ports of the same host.
    refused = 403 if host == other_host and not sandbox else 401
    assert [attack("/logout"), attack("/form")] == [refused, refused]
    assert site.requests == []
    (kept,) = browser.execute_cdp_cmd("Network.getCookies", {"urls": [url]})["cookies"]
    assert kept["value"] == cookie["value"] and site.store.end_sessions("alice") == 1


@pytest.mark.parametrize("host, other_host", OTHER_ORIGINS)
def test_web_socket_of_another_origin_is_refused(
    browser, port, other_port, site, host, other_host,
):
    def connect():
        browser.execute_async_script(f"""
            const socket = new WebSocket("ws://{host}:{port}/socket");
            socket.onclose = arguments[0];""")

    browser.receive_cookie(f"http://{host}:{port}/", site.cookie())
    browser.get(f"http://{host}:{port}/page")
    connect()
    assert site.requests.pop() == ("GET", "/socket", "alice")

    browser.get(f"http://{other_host}:{other_port}/")
    site.answers.clear()
    connect()
    assert site.answers == [("GET", "/socket", 403 if host == other_host else 401)]


@pytest.mark.parametrize("path", ["/login", "/page"])
def test_pages_cannot_be_framed(browser, url, other_port, pages, path):
    pages["/"] = [f"<iframe src='{url}{path}'></iframe>"]
    browser.get(f"http://127.0.0.1:{other_port}/")

    browser.switch_to.frame(0)
    assert browser.execute_script("return document.URL") == "chrome-error://chromewebdata/"


@pytest.mark.parametrize("path", [
    "/login?next=//evil.example", "/login?next=/%5Cevil.example", "/login?next=/%09/evil.example",
    "/login?next=http:evil.example", "/login?next=javascript:alert(1)", "//evil.example/",
    "/%5Cevil.example", "/%09/evil.example", "/%0D%0ALocation:%20//evil.example",
    "/%2F/evil.example"])
def test_sign_in_never_leads_to_another_site(browser, url, path):
    browser.get(url + path)
    browser.sign_in()

    browser.await_text("private page of alice")
    assert browser.current_url.startswith(f"{url}/")


def test_page_that_redirects_to_another_site_is_reached_after_a_reload(
    browser, url, other_port, site,
):
    """Chromium applies `form-action` to redirects: it ignores the response to the form."""
    site.elsewhere = f"http://127.0.0.1:{other_port}/"
    browser.get(f"{url}/elsewhere")
    browser.sign_in(page_stays=True)
    browser.wait(lambda: site.requests)
    assert browser.field("password")

    browser.refresh()
    browser.find_element(By.LINK_TEXT, "Continue to /elsewhere").click()
    browser.await_page(site.elsewhere)


# --- The cookie ---------------------------------------------------------------------------------


def test_second_cookie_of_the_name_shuts_out_and_signs_nobody_in(
    browser, url, other_port, pages, site,
):
    browser.receive_cookie(url, site.cookie())
    # Cookies ignore ports. This one is for a part of the site, so it comes first.
    pages["/"] = ["", ("Set-Cookie", "jwtserver=x; Path=/page")]
    browser.get(f"http://127.0.0.1:{other_port}/")

    browser.get(f"{url}/page")
    assert site.requests == []
    browser.await_text("Continue to /page")  # the sign-in page gets only its own cookie
    browser.get(f"{url}/other")
    browser.await_text("private page of alice")


def test_page_of_another_site_may_link_but_gets_no_cookie(browser, url, other_port, pages, site):
    browser.receive_cookie(url, site.cookie())
    pages["/"] = [f"<a href='{url}/link'>link</a> <img src='{url}/image'>"]
    browser.get(f"http://evil.example:{other_port}/")
    browser.find_element(By.TAG_NAME, "a").click()

    browser.await_page(f"{url}/link")
    assert site.requests == [("GET", "/link", "alice")]


def test_cookie_over_https_belongs_to_the_host(browser, site, other_port, pages, tmp_path):
    (tmp_path / "server.pem").write_text(CERTIFICATE)
    tls = jwtserver._tls_context(str(tmp_path / "server.pem"), None)
    with port_of(site.service, tls=tls) as port:
        # Neither a sibling nor another port without HTTPS can set a second cookie.
        for host, attributes in [("a.tool.example", "Secure; Path=/; Domain=tool.example"),
                                 ("tool.example", "Path=/")]:
            pages["/"] = ["", ("Set-Cookie", f"__Host-jwtserver=x; {attributes}")]
            browser.get(f"http://{host}:{other_port}/")
        browser.get(f"https://tool.example:{port}/page")
        browser.sign_in()
        browser.await_page(f"https://tool.example:{port}/page")

        (cookie,) = browser.get_cookies()
        assert (cookie["name"], cookie["path"], cookie["domain"]) == (
            "__Host-jwtserver", "/", "tool.example")
        assert cookie["httpOnly"] and cookie["secure"] and cookie["sameSite"] == "Lax"

        browser.press("Send")
        browser.await_text("private page of alice")
        browser.get(f"https://tool.example:{port}/login")
        browser.press("Sign out")
        browser.await_page(f"https://tool.example:{port}/login")
        assert browser.get_cookies() == []
