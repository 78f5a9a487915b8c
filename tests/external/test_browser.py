"""Pages in a real browser, Chromium without a window, that use the service from other origins."""

import json
import queue
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

PAGE = """<!doctype html><script>
async function told(path, options) {
    try {
        const response = await fetch("THE_API" + path, options);
        return {status: response.status, body: await response.json(),
                challenge: response.headers.get("WWW-Authenticate")};
    } catch (error) {
        return error.name;
    }
}
async function ask() {
    const credentials = {username: "alice", password: "correct horse"};
    const as_json = await told("/authenticate", {
        method: "POST", body: JSON.stringify(credentials),
        headers: {"Content-Type": "application/json"}});
    const as_form = await told("/authenticate", {
        method: "POST", body: new URLSearchParams(credentials)});
    const token = as_json.body ? as_json.body.token : "THE_TOKEN";
    const told_all = {
        as_json, as_form,
        plain: await told("/health"),
        guarded: await told("/protected", {headers: {Authorization: "Bearer " + token}}),
        refused: await told("/protected", {headers: {Authorization: "Bearer x"}}),
        with_cookies: await told("/health", {credentials: "include"})};
    await fetch("/told", {method: "POST", body: JSON.stringify(told_all)});
}
ask();
</script>"""


@pytest.fixture
def pages():
    """Servers of the page, an origin each; what a page tells its server comes out of the queue."""
    told = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.server.page.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    yield servers, told
    for server, thread in zip(servers, threads):
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def visit(tmp_path, pages):
    """Opens the page of an origin in a browser, and returns what the page was told."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser:
        pytest.skip("there is no Chromium")

    def visit(origin):
        with open(tmp_path / "browser.log", "wb") as log:
            process = subprocess.Popen(
                [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                 "--no-first-run", "--disable-background-networking", "--disable-sync",
                 "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
                 "--disable-dev-shm-usage", "--remote-debugging-port=0", origin],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            return pages[1].get(timeout=60)
        finally:
            process.terminate()
            process.wait()

    return visit


def origin_of(page):
    return f"http://127.0.0.1:{page.server_port}"


def test_page_of_a_listed_origin_signs_in_and_one_of_another_can_do_nothing(
    pages, visit, start, free_port, folder,
):
    port = free_port()
    listed, other = pages[0]
    client = start([sys.executable, "jwtserver.py", "--port", str(port),
                    "--cors-origin", origin_of(listed)], port)
    listed.page = PAGE.replace("THE_API", client.url)
    other.page = listed.page.replace("THE_TOKEN", client.sign_in()[2]["token"])

    told = visit(origin_of(listed))

    assert told["as_json"]["status"] == told["as_form"]["status"] == 200
    assert told["guarded"]["body"] == {"message": "Welcome to the protected page"}
    assert told["refused"] == {
        "status": 401, "body": {"success": False, "error": "Invalid authorization token"},
        "challenge": 'Bearer realm="api", error="invalid_token",'
                     ' error_description="A token has three parts"'}
    assert told["plain"]["body"] == {"status": "ok"}
    assert told["with_cookies"] == "TypeError"  # credentials of the browser's are never asked for

    asked = (folder / "log").read_text().count("sign_in user=")
    told = visit(origin_of(other))

    assert set(told.values()) == {"TypeError"}
    # The form goes out without a preflight, as forms always have; but its answer cannot be read.
    assert (folder / "log").read_text().count("sign_in user=") == asked + 1


def test_page_of_any_origin_signs_in_where_all_are_allowed(pages, visit, start, free_port):
    port = free_port()
    _, other = pages[0]
    client = start([sys.executable, "jwtserver.py", "--port", str(port), "--cors-origin", "*"],
                   port)
    other.page = PAGE.replace("THE_API", client.url)

    told = visit(origin_of(other))

    assert told["guarded"]["status"] == 200 and told["refused"]["status"] == 401
    assert told["with_cookies"] == "TypeError"
