"""CORSMiddleware: which origins may read which responses, and preflight requests."""

from wsgiref.validate import validator

import pytest
from webtest import TestApp

import jwtserver
from jwtserver import Settings, SettingsError, create_app
from support import KEY, for_each
from wsgi_auth import CORSMiddleware

LISTED, OTHER = "https://app.example.org", "https://evil.example.org"
PREFLIGHT = {"Origin": LISTED, "Access-Control-Request-Method": "GET",
             "Access-Control-Request-Headers": "authorization"}


@pytest.fixture
def clean_environment():
    """These tests do not read the environment."""


def refusing(environ, start_response):
    """Answers 401 and tries to share its response with every origin."""
    start_response("401 Unauthorized", [
        ("Content-Type", "text/plain"), ("Access-Control-Allow-Origin", "*"),
        ("access-control-allow-credentials", "true"), ("Vary", "Accept")])
    return [b"hello"]


def client(app=refusing, allow_origins=(LISTED, "http://localhost:8080"), **options):
    return TestApp(validator(CORSMiddleware(
        validator(app), allow_origins=allow_origins, **options)))


def cors_headers(response):
    return {name: value for name, value in response.headers.items()
            if name.startswith("Access-Control-")}


@for_each("origin", [LISTED, "http://localhost:8080"])
def test_cors_listed_origin_may_read_errors(origin):
    response = client().get("/", headers={"Origin": origin}, status=401)

    assert response.body == b"hello"
    assert response.headers.getall("Vary") == ["Accept", "Origin"]
    assert cors_headers(response) == {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "WWW-Authenticate, Retry-After"}


@for_each("origin", [
    None, OTHER, "null", "", "*", LISTED + ".evil.org", LISTED + "/", LISTED + ":444",
    LISTED.upper(), LISTED.replace("https", "http"), f"{LISTED}, {OTHER}", f"{LISTED} {LISTED}"])
@for_each("method", ["GET", "OPTIONS"])
def test_cors_other_origin_gets_no_cors_headers(origin, method):
    headers = {"Access-Control-Request-Method": "GET", **({"Origin": origin} if origin else {})}

    response = client().request("/", method=method, headers=headers, expect_errors=True)

    assert cors_headers(response) == {}
    assert "Origin" in response.headers.getall("Vary")


def test_cors_preflight_of_listed_origin_does_not_reach_the_application():
    def app(environ, start_response):
        raise AssertionError("the application was called")

    response = client(app).options("/api", headers=PREFLIGHT, status=204)

    assert response.body == b"" and "Content-Type" not in response.headers
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Vary"] == "Origin"
    assert cors_headers(response) == {
        "Access-Control-Allow-Origin": LISTED,
        "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Max-Age": "600"}


@for_each("headers", [
    {}, {"Origin": LISTED}, {"Access-Control-Request-Method": "GET"}])
def test_cors_options_request_that_is_no_preflight_reaches_the_application(headers):
    assert client().options("/", headers=headers, status=401).body == b"hello"


def test_cors_parameters_become_headers():
    app = client(allow_origins=[LISTED], allow_methods=["QUERY"], allow_headers=["X-Y"],
                 expose_headers=["ETag"], max_age=5)

    assert cors_headers(app.options("/", headers=PREFLIGHT)) == {
        "Access-Control-Allow-Origin": LISTED, "Access-Control-Allow-Methods": "QUERY",
        "Access-Control-Allow-Headers": "X-Y", "Access-Control-Max-Age": "5"}
    exposed = app.get("/", headers={"Origin": LISTED}, status=401)
    assert exposed.headers["Access-Control-Expose-Headers"] == "ETag"


@for_each("origins", ["*", ["*"], (LISTED, "*")])
def test_cors_wildcard_is_never_combined_with_credentials(origins):
    for origin in (LISTED, OTHER, "null"):
        for response in (
            client(allow_origins=origins).get("/", headers={"Origin": origin}, status=401),
            client(allow_origins=origins).options("/", headers={**PREFLIGHT, "Origin": origin}),
        ):
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in response.headers


@for_each("options", [
    {"allow_origins": LISTED}, {"allow_origins": ""}, {"allow_origins": [LISTED + "/"]},
    {"allow_origins": ["app.example.org"]}, {"allow_origins": ["https://App.example.org"]},
    {"allow_origins": ["https://a:443"]}, {"allow_origins": ["http://a:80"]},
    {"allow_origins": ["null"]}, {"allow_origins": ["https://a\r\nX: y"]},
    {"allow_origins": ["https://*.example.org"]}, {"allow_origins": [None]},
    {"allow_origins": [[LISTED]]},
    {"allow_origins": [LISTED], "allow_methods": ["GET,POST"]},
    {"allow_origins": [LISTED], "allow_headers": ["X Y"]},
    {"allow_origins": [LISTED], "allow_methods": "GET"},
    {"allow_origins": [LISTED], "allow_headers": "X"},
    {"allow_origins": [LISTED], "expose_headers": "X"},
    {"allow_origins": [LISTED], "expose_headers": [None]},
    {"allow_origins": [LISTED], "expose_headers": ["X\r\nY"]},
])
def test_cors_malformed_parameters_raise_value_error(options):
    with pytest.raises(ValueError):
        CORSMiddleware(refusing, **options)


def test_cors_parameters_may_be_any_iterable():
    names = (name for name in ["X-One", "X-Two"])
    app = client(allow_origins=iter([LISTED]), expose_headers=names)

    response = app.get("/", headers={"Origin": LISTED}, status=401)

    assert response.headers["Access-Control-Allow-Origin"] == LISTED
    assert response.headers["Access-Control-Expose-Headers"] == "X-One, X-Two"


@for_each("origin", [
    "http://localhost", "http://[::1]:3000", "https://a:80", "http://a:443", "app://x",
    "chrome-extension://abcdef"])
def test_cors_origin_of_each_kind_is_accepted(origin):
    response = client(allow_origins=[origin]).get("/", headers={"Origin": origin}, status=401)

    assert response.headers["Access-Control-Allow-Origin"] == origin


@for_each("exposed, expected", [
    (["X-Total"], "WWW-Authenticate, Retry-After, X-Total"),
    (["X-Total, ETag", "Link"], "WWW-Authenticate, Retry-After, X-Total, ETag, Link"),
    (["*"], "WWW-Authenticate, Retry-After, *"),
    ([""], "WWW-Authenticate, Retry-After"),
])
def test_cors_headers_that_the_application_exposes_are_added(exposed, expected):
    def app(environ, start_response):
        start_response("200 OK", [
            ("Content-Type", "text/plain"),
            *(("access-control-Expose-Headers", value) for value in exposed)])
        return [b"hello"]

    assert cors_headers(client(app).get("/", headers={"Origin": OTHER})) == {}
    response = client(app).get("/", headers={"Origin": LISTED})
    assert response.headers.getall("Access-Control-Expose-Headers") == [expected]
    response = client(app, expose_headers=()).get("/", headers={"Origin": LISTED})
    own = "WWW-Authenticate, Retry-After"
    assert response.headers["Access-Control-Expose-Headers"] == expected[len(own):].lstrip(", ")


# --- In the service -----------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path):
    return TestApp(create_app(Settings(
        database=str(tmp_path / "users.db"), secret=KEY, cors_origins=(LISTED,),
        rate_limit=jwtserver.Rate(4, 60))))


def test_service_answers_preflights_outside_the_guard_and_the_rate_limit(service):
    for path in ("/protected", "/authenticate", "/nowhere") * 3:
        response = service.options(path, headers=PREFLIGHT, status=204)

        assert response.headers["Access-Control-Allow-Origin"] == LISTED


def test_service_shares_every_response_with_only_the_listed_origin(service):
    for path, status in [("/protected", 401), ("/nowhere", 404), ("/health", 200),
                         ("/nowhere", 429)]:
        response = service.get(path, headers={"Origin": LISTED}, status=status)
        assert response.headers["Access-Control-Allow-Origin"] == LISTED

        response = service.get(path, headers={"Origin": OTHER}, expect_errors=True)
        assert cors_headers(response) == {}


def test_service_without_origins_sends_no_cors_headers(tmp_path):
    app = TestApp(create_app(Settings(database=str(tmp_path / "users.db"), secret=KEY)))

    response = app.get("/health", headers={"Origin": LISTED})

    assert cors_headers(response) == {} and "Vary" not in response.headers


def test_service_with_malformed_origin_names_the_variable(tmp_path):
    settings = Settings(database=str(tmp_path / "users.db"), secret=KEY,
                        cors_origins=(LISTED + "/",))

    with pytest.raises(SettingsError, match="^JWTSERVER_CORS_ORIGINS: not an origin"):
        create_app(settings)
