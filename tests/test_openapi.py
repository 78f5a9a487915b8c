"""`/verify` for proxies, and the OpenAPI document."""

import json
import time
from urllib.parse import urljoin

import pytest
from webtest import TestApp

import jwtserver
from jwtserver import Settings, create_app
from support import KEY, PASSWORD, for_each, store_with, user
from wsgi_auth import TokenSigner


@pytest.fixture
def settings(tmp_path):
    return Settings(database=str(tmp_path / "users.db"), secret=KEY, pbkdf2_iterations=1000)


@pytest.fixture
def client(settings):
    return TestApp(create_app(settings))


def bearer(**claims):
    return {"Authorization": f"Bearer {TokenSigner(KEY).sign(claims)}"}


# --- /verify


@for_each("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_verify_with_a_token_names_its_user(client, method):
    headers = bearer(sub="alice", scope="read write")

    response = client.request("/verify", method=method, headers=headers, status=200)

    assert (response.headers["Remote-User"], response.headers["Remote-Scope"]) == (
        "alice", "read write")
    expected = {"user": "alice", "scope": "read write"}
    assert not response.body if method == "HEAD" else response.json == expected


def test_verify_of_a_name_beyond_ascii_sends_utf_8(client):
    response = client.get("/verify", headers=bearer(sub="Zoë 山田"))

    assert response.json == {"user": "Zoë 山田", "scope": ""}
    assert response.headers["Remote-User"].encode("latin-1").decode() == "Zoë 山田"
    assert response.headers["Remote-Scope"] == ""


@for_each("headers", [
    {}, {"Authorization": "Bearer x"}, {"Remote-User": "alice"},
    {"X-Original-URI": "/public", "X-Forwarded-User": "alice"}])
def test_verify_without_a_valid_token_is_refused_with_the_challenge(client, headers):
    response = client.get("/verify", headers=headers, status=401)

    assert response.headers["WWW-Authenticate"].startswith('Bearer realm="api"')
    assert "Remote-User" not in response.headers


@for_each("claims", [
    {"sub": "a\r\nRemote-User: root"}, {"sub": "a\0"}, {"sub": " root"}, {"sub": "root\t"},
    {"sub": "a\x7f"}, {"sub": "a\x9f"}, {"sub": "a", "scope": "x\ny"}, {"sub": "a", "scope": ["x"]},
])
def test_verify_of_claims_that_a_header_cannot_carry_is_refused(client, claims):
    response = client.get("/verify", headers=bearer(**claims), status=403)

    assert "Remote-User" not in response.headers


@for_each("query", [
    "scope=read", "scope=read%20write", "scope=write+read", "scope=+read++", "sc%6Fpe=read",
    "", "x=1", "optional", "Scope=admin", "scopes=admin", "x;scope=admin", "%ff=%ff&&=&a=1&a=2"])
def test_verify_with_scopes_that_the_token_has_or_other_parameters_admits(client, query):
    client.get(f"/verify?{query}", headers=bearer(sub="alice", scope="read write"), status=200)


@for_each("query, scope", [
    ("scope=admin", "admin"), ("scope=admin%20read", "admin read"), ("scope=READ", "READ"),
    ("scope=read+admin", "read admin"), ("scope=rea", "rea"), ("optional&scope=admin", "admin")])
@for_each("granted", [{"scope": "read write"}, {}])
def test_verify_with_a_scope_that_the_token_lacks_is_refused(client, query, scope, granted):
    response = client.get(f"/verify?{query}", headers=bearer(sub="alice", **granted), status=403)

    assert response.json == {"success": False, "error": "Insufficient scope"}
    assert response.headers["WWW-Authenticate"] == (
        f'Bearer realm="api", error="insufficient_scope", scope="{scope}"')
    assert "Remote-User" not in response.headers


@for_each("query", [
    "scope", "scope=", "scope=+", "scope=a&scope=a", "scope=a&x=1&sc%6fpe=a", 'scope=%22',
    "scope=a%0d%0ab", "scope=a,%5c", "scope=%ff", "scope=%C3%BC", "scope=read%09"])
def test_verify_with_a_malformed_or_repeated_scope_is_refused(client, query):
    response = client.get(
        f"/verify?{query}", headers=bearer(sub="alice", scope="a read"), status=400)

    assert response.json["error"].startswith("`scope` must be given once")


def test_verify_is_never_open(settings):
    client = TestApp(create_app(settings._replace(exempt=("/",))))

    response = client.get("/verify", status=401)

    assert response.headers["WWW-Authenticate"] == 'Bearer realm="api"'


def test_verify_stands_beside_an_application(settings):
    def app(environ, start_response):
        raise AssertionError("asked")

    client = TestApp(create_app(settings._replace(prefix="/auth"), app=app))

    client.get("/auth/verify", headers=bearer(sub="alice"), status=200)


# --- The document


@pytest.fixture
def document(client):
    return client.get("/openapi.json", status=200).json


def test_openapi_has_every_endpoint(document):
    methods = "get post put patch delete options head trace".split()
    assert {path: sorted(operations) for path, operations in document["paths"].items()} == {
        "/authenticate": ["post"], "/refresh": ["post"], "/logout": ["post"],
        "/verify": sorted(methods), "/health": ["get"], "/protected": ["get"],
        "/openapi.json": ["get"], "/": ["get"], "/login": ["get", "post"], "/password": ["post"],
        "/sessions": ["get"], "/sessions/{id}": ["delete", "parameters", "post"]}
    assert (document["openapi"], document["info"]["version"]) == ("3.1.0", jwtserver.__version__)


def test_openapi_of_an_application_has_the_endpoints_beside_it(settings):
    client = TestApp(create_app(settings._replace(prefix="/auth"), app=lambda *args: []))

    paths = client.get("/auth/openapi.json").json["paths"]

    assert "/auth/authenticate" in paths and "/protected" not in paths


@for_each("prefix", ["", "/auth", "/a/b"])
@for_each("mount", ["", "/mnt"])
def test_openapi_server_leads_to_the_endpoints(settings, prefix, mount):
    client = TestApp(create_app(settings._replace(prefix=prefix)))
    url = f"http://h{mount}{prefix}/openapi.json"

    document = client.get(f"{prefix}/openapi.json")

    (server,) = document.json["servers"]
    root = urljoin(url, server["url"]).rstrip("/")
    assert root == f"http://h{mount}"
    assert f"{prefix}/authenticate" in document.json["paths"]
    assert document.headers["Cache-Control"] == "no-cache"


def test_index_of_the_demo_lists_the_endpoints_and_the_document(client, settings):
    assert client.get("/").headers["Cache-Control"] == "no-cache"
    assert client.get("/").json == {
        "endpoints": ["POST /authenticate", "POST /refresh", "POST /logout", "POST /password",
                      "GET /sessions", "DELETE /sessions/{id}", "POST /sessions/{id}",
                      "any /verify", "GET /health", "GET /login", "POST /login", "GET /protected",
                      "GET /openapi.json", "GET /"],
        "openapi": "/openapi.json"}
    mine = TestApp(create_app(settings, app=lambda *args: []))
    mine.get("/", status=401)
    behind = TestApp(create_app(settings._replace(prefix="/auth")))
    assert behind.get("/").json["openapi"] == "/auth/openapi.json"


@pytest.mark.parametrize("path, method, names", [
    ("/verify", "get", ["scope", "optional", "login"]),
    ("/verify", "post", ["scope", "optional", "login"]), ("/login", "get", ["next"])])
def test_openapi_describes_the_query(document, path, method, names):
    parameters = document["paths"][path][method]["parameters"]

    assert [(parameter["name"], parameter["in"]) for parameter in parameters] == [
        (name, "query") for name in names]


def test_openapi_is_a_valid_document(document):
    validator = pytest.importorskip("openapi_spec_validator")

    validator.validate(document)


def test_openapi_describes_every_response(settings, client, document):
    """Each response is valid by its schema, except those to internal faults."""
    jsonschema = pytest.importorskip("jsonschema")
    store = store_with(settings.database, user("alice"), user("bob"))
    store.set_otp("bob", "A" * 32, 0)
    store.close()

    def check(response, path, method):
        described = document["paths"][path][method]["responses"][str(response.status_int)]
        if response.body:
            schema = described["content"]["application/json"]["schema"]
            jsonschema.validate(response.json, schema)
        else:
            assert "content" not in described
        return response

    def post(path, fields, status, **options):
        return check(client.post_json(path, fields, status=status, **options), path, "post").json

    answer = post("/authenticate", {"username": "alice", "password": PASSWORD}, 200)
    post("/authenticate", {"username": "alice"}, 401)
    post("/authenticate", {"username": 1, "password": "x"}, 400)
    answer = post("/refresh", {"refresh_token": answer["refresh_token"]}, 200)
    schema = document["paths"]["/authenticate"]["post"]["responses"]["401"]["content"][
        "application/json"]["schema"]
    assert set(post("/authenticate", {"username": "bob", "password": PASSWORD}, 401)) <= set(
        schema["properties"])
    post("/refresh", {"refresh_token": "x"}, 401)
    for path in ("/authenticate", "/refresh"):
        check(client.post(path, "x", {"Content-Type": "text/plain"}, status=415), path, "post")
    token = {"Authorization": f"Bearer {answer['token']}"}
    for path, status in [("/protected", 200), ("/verify", 200)]:
        check(client.get(path, headers=token, status=status), path, "get")
        check(client.get(path, status=401), path, "get")
    check(client.post("/logout", headers=token, status=204), "/logout", "post")
    check(client.post("/logout", headers=token, status=401), "/logout", "post")
    check(client.get("/health", status=200), "/health", "get")
    check(client.get("/", status=200), "/", "get")
    stray = TokenSigner(KEY, clock=time.time).sign({"sub": "x"})
    check(client.post("/logout", headers={"Authorization": f"Bearer {stray}"}, status=400),
          "/logout", "post")
    assert json.loads(json.dumps(document)) == document
