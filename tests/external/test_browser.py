"""Pages of other origins that use the service, in headless Chromium."""

import json
import queue
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

PAGE = """<!doctype html><script>
async function request(path, options) {
    try {
        const response = await fetch("THE_API" + path, options);
        return {status: response.status, body: await response.json(),
                challenge: response.headers.get("WWW-Authenticate")};
    } catch (error) {
        return error.name;
    }
}
async function run() {
    const credentials = {username: "alice", password: "correct horse"};
    const as_json = await request("/authenticate", {
        method: "POST", body: JSON.stringify(credentials),
        headers: {"Content-Type": "application/json"}});
    const as_form = await request("/authenticate", {
        method: "POST", body: new URLSearchParams(credentials)});
    const token = as_json.body ? as_json.body.token : "THE_TOKEN";
    const results = {
        as_json, as_form,
        plain: await request("/health"),
        guarded: await request("/protected", {headers: {Authorization: "Bearer " + token}}),
        refused: await request("/protected", {headers: {Authorization: "Bearer x"}}),
        with_cookies: await request("/health", {credentials: "include"})};
    await fetch("/results", {method: "POST", body: JSON.stringify(results)});
}
run();
</script>"""


@pytest.fixture
def pages():
    """Two servers, each with its own origin, and a queue of the results that pages send to them."""
    results = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.server.page.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    yield servers, results
    for server, thread in zip(servers, threads):
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def visit(tmp_path, pages):
    """Opens the page of an origin in a browser, and returns the results of its requests."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser:
        pytest.skip("Chromium is not installed")

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


def test_page_of_a_listed_origin_signs_in_and_page_of_another_origin_reads_nothing(
    pages, visit, start, free_port, folder,
):
    port = free_port()
    listed, other = pages[0]
    client = start([sys.executable, "jwtserver.py", "--port", str(port),
                    "--cors-origin", origin_of(listed)], port)
    listed.page = PAGE.replace("THE_API", client.url)
    other.page = listed.page.replace("THE_TOKEN", client.sign_in()[2]["token"])

    results = visit(origin_of(listed))

    assert results["as_json"]["status"] == results["as_form"]["status"] == 200
    assert results["guarded"]["body"] == {"message": "Welcome to the protected page"}
    assert results["refused"] == {
        "status": 401, "body": {"success": False, "error": "Invalid authorization token"},
        "challenge": 'Bearer realm="api", error="invalid_token",'
                     ' error_description="Token must have three parts"'}
    assert results["plain"]["body"] == {"status": "ok"}
    assert results["with_cookies"] == "TypeError"  # the service allows no cookies

    sign_ins = (folder / "log").read_text().count("sign_in user=")
    results = visit(origin_of(other))

    assert set(results.values()) == {"TypeError"}
    # A browser sends a form without a preflight request, but the page cannot read the response.
    assert (folder / "log").read_text().count("sign_in user=") == sign_ins + 1


def test_page_of_any_origin_signs_in_when_all_are_allowed(pages, visit, start, free_port):
    port = free_port()
    _, other = pages[0]
    client = start([sys.executable, "jwtserver.py", "--port", str(port), "--cors-origin", "*"],
                   port)
    other.page = PAGE.replace("THE_API", client.url)

    results = visit(origin_of(other))

    assert results["guarded"]["status"] == 200 and results["refused"]["status"] == 401
    assert results["with_cookies"] == "TypeError"
