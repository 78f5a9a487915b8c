"""CORSMiddleware: what a browser is told, and that nobody else is told anything."""

from wsgiref.validate import validator

import pytest
from webtest import TestApp

import jwtserver
from jwtserver import Settings, SettingsError, create_app
from wsgi_auth import CORSMiddleware

HERE, THERE = "https://app.example.org", "https://evil.example.org"
PREFLIGHT = {"Origin": HERE, "Access-Control-Request-Method": "GET",
             "Access-Control-Request-Headers": "authorization"}


@pytest.fixture
def clean_environment():
    """Nothing here reads it."""


def hello(environ, start_response):
    start_response("401 Unauthorized", [
        ("Content-Type", "text/plain"), ("Access-Control-Allow-Origin", "*"),
        ("access-control-allow-credentials", "true"), ("Vary", "Accept")])
    return [b"hello"]


def client(app=hello, allow_origins=(HERE, "http://localhost:8080"), **options):
    return TestApp(validator(CORSMiddleware(
        validator(app), allow_origins=allow_origins, **options)))


def cors_headers(response):
    return {name: value for name, value in response.headers.items()
            if name.startswith("Access-Control-")}


@pytest.mark.parametrize("origin", [HERE, "http://localhost:8080"])
def test_cors_listed_origin_may_read_errors_as_well(origin):
    response = client().get("/", headers={"Origin": origin}, status=401)

    assert response.body == b"hello"
    assert response.headers.getall("Vary") == ["Accept", "Origin"]
    assert cors_headers(response) == {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "WWW-Authenticate, Retry-After"}


@pytest.mark.parametrize("origin", [
    None, THERE, "null", "", "*", HERE + ".evil.org", HERE + "/", HERE + ":444", HERE.upper(),
    HERE.replace("https", "http"), f"{HERE}, {THERE}", f"{HERE} {HERE}"])
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_cors_other_origin_gets_no_cors_header(origin, method):
    headers = {"Access-Control-Request-Method": "GET", **({"Origin": origin} if origin else {})}

    response = client().request("/", method=method, headers=headers, expect_errors=True)

    assert cors_headers(response) == {}
    assert "Origin" in response.headers.getall("Vary")


def test_cors_preflight_is_answered_without_the_application():
    def app(environ, start_response):
        raise AssertionError("asked")

    response = client(app).options("/api", headers=PREFLIGHT, status=204)

    assert response.body == b"" and "Content-Type" not in response.headers
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Vary"] == "Origin"
    assert cors_headers(response) == {
        "Access-Control-Allow-Origin": HERE,
        "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Max-Age": "600"}


@pytest.mark.parametrize("headers", [
    {}, {"Origin": HERE}, {"Access-Control-Request-Method": "GET"}])
def test_cors_options_that_is_no_preflight_is_the_applications(headers):
    assert client().options("/", headers=headers, status=401).body == b"hello"


def test_cors_options_say_what_is_allowed():
    app = client(allow_origins=[HERE], allow_methods=["QUERY"], allow_headers=["X-Y"],
                 expose_headers=["ETag"], max_age=5)

    assert cors_headers(app.options("/", headers=PREFLIGHT)) == {
        "Access-Control-Allow-Origin": HERE, "Access-Control-Allow-Methods": "QUERY",
        "Access-Control-Allow-Headers": "X-Y", "Access-Control-Max-Age": "5"}
    exposed = app.get("/", headers={"Origin": HERE}, status=401)
    assert exposed.headers["Access-Control-Expose-Headers"] == "ETag"


@pytest.mark.parametrize("origins", ["*", ["*"], (HERE, "*")])
def test_cors_any_origin_never_comes_with_credentials(origins):
    for origin in (HERE, THERE, "null"):
        for response in (
            client(allow_origins=origins).get("/", headers={"Origin": origin}, status=401),
            client(allow_origins=origins).options("/", headers={**PREFLIGHT, "Origin": origin}),
        ):
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in response.headers


def test_cors_streams_and_closes_and_passes_errors_on():
    happened = []

    class Body:
        def __iter__(self):
            for piece in (b"a", b"b"):
                happened.append(piece)
                yield piece

        def close(self):
            happened.append("closed")

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            raise KeyError
        except KeyError as error:
            start_response("500 Oops", [("Content-Type", "text/plain")],
                           (KeyError, error, error.__traceback__))
        return Body()

    told = []
    body = CORSMiddleware(app, allow_origins=[HERE])(
        {"HTTP_ORIGIN": HERE}, lambda status, headers, *exc_info: told.append((status, exc_info)))

    assert next(iter(body)) == b"a" and happened == [b"a"]
    body.close()
    assert happened == [b"a", "closed"]
    assert [status for status, _ in told] == ["200 OK", "500 Oops"]
    assert [len(exc_info) for _, exc_info in told] == [0, 1]


@pytest.mark.parametrize("options", [
    {"allow_origins": HERE}, {"allow_origins": ""}, {"allow_origins": [HERE + "/"]},
    {"allow_origins": ["app.example.org"]}, {"allow_origins": ["https://App.example.org"]},
    {"allow_origins": ["https://a:443"]}, {"allow_origins": ["http://a:80"]},
    {"allow_origins": ["null"]}, {"allow_origins": ["https://a\r\nX: y"]},
    {"allow_origins": ["https://*.example.org"]}, {"allow_origins": [None]},
    {"allow_origins": [[HERE]]},
    {"allow_origins": [HERE], "allow_methods": ["GET,POST"]},
    {"allow_origins": [HERE], "allow_headers": ["X Y"]},
    {"allow_origins": [HERE], "allow_methods": "GET"},
    {"allow_origins": [HERE], "allow_headers": "X"},
    {"allow_origins": [HERE], "expose_headers": "X"},
    {"allow_origins": [HERE], "expose_headers": [None]},
    {"allow_origins": [HERE], "expose_headers": ["X\r\nY"]},
])
def test_cors_malformed_options_are_refused(options):
    with pytest.raises(ValueError):
        CORSMiddleware(hello, **options)


def test_cors_options_of_any_iterable_are_used():
    each = (name for name in ["X-One", "X-Two"])
    shared = client(allow_origins=iter([HERE]), expose_headers=each)

    response = shared.get("/", headers={"Origin": HERE}, status=401)

    assert response.headers["Access-Control-Allow-Origin"] == HERE
    assert response.headers["Access-Control-Expose-Headers"] == "X-One, X-Two"


@pytest.mark.parametrize("origin", [
    "http://localhost", "http://[::1]:3000", "https://a:80", "http://a:443", "app://x",
    "chrome-extension://abcdef"])
def test_cors_origins_of_all_kinds_are_allowed(origin):
    response = client(allow_origins=[origin]).get("/", headers={"Origin": origin}, status=401)

    assert response.headers["Access-Control-Allow-Origin"] == origin


# --- In the service


@pytest.fixture
def service(tmp_path):
    return TestApp(create_app(Settings(
        database=str(tmp_path / "users.db"), secret="k" * 32, cors_origins=(HERE,),
        rate_limit=jwtserver.Rate(4, 60))))


def test_service_answers_preflights_outside_of_the_guard_and_the_limit(service):
    for path in ("/protected", "/authenticate", "/nowhere") * 3:
        response = service.options(path, headers=PREFLIGHT, status=204)

        assert response.headers["Access-Control-Allow-Origin"] == HERE


def test_service_shares_every_answer_with_the_listed_origin_alone(service):
    for path, status in [("/protected", 401), ("/nowhere", 404), ("/health", 200),
                         ("/nowhere", 429)]:
        response = service.get(path, headers={"Origin": HERE}, status=status)
        assert response.headers["Access-Control-Allow-Origin"] == HERE

        response = service.get(path, headers={"Origin": THERE}, expect_errors=True)
        assert cors_headers(response) == {}


def test_service_without_origins_is_shared_with_nobody(tmp_path):
    app = TestApp(create_app(Settings(database=str(tmp_path / "users.db"), secret="k" * 32)))

    response = app.get("/health", headers={"Origin": HERE})

    assert cors_headers(response) == {} and "Vary" not in response.headers


def test_service_malformed_origin_names_the_variable(tmp_path):
    settings = Settings(database=str(tmp_path / "users.db"), secret="k" * 32,
                        cors_origins=(HERE + "/",))

    with pytest.raises(SettingsError, match="^JWTSERVER_CORS_ORIGINS: not an origin"):
        create_app(settings)
