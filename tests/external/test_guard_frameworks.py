"""The guard in front of real routers, and of readers of paths that are as careless as can be.

What a router serves as secret, however the path is written, it must not serve without a token.
"""

import importlib
import importlib.util
import logging
import random
import types
import warnings
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from paths import READERS, spellings

from wsgi_auth import BearerAuthMiddleware, TokenSigner


@pytest.fixture(autouse=True)
def clean_environment():
    """Nothing here reads the environment or a folder."""


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the frameworks' own

SIGNER = TokenSigner("k" * 32)
TOKEN = "Bearer " + SIGNER.sign({"sub": "alice"})
SECRET = "the secret of "
HELLO = "hello, "


def imported(name):
    """A module, or a skip where it is absent or does not run on this Python."""
    pytest.importorskip(name.partition(".")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception as error:
            pytest.skip(f"{name} cannot be imported: {error!r}")


# --- Applications of real frameworks, that serve /protected, all below it, and /public ----------


def flask_app():
    flask = imported("flask")
    app = flask.Flask(__name__)

    @app.route("/protected")
    @app.route("/protected/<path:rest>")
    def protected(rest=""):
        return f"{SECRET}{flask.request.remote_user}"

    @app.route("/public")
    def public():
        return f"{HELLO}{flask.request.remote_user}"

    return app


def bottle_app():
    bottle = imported("bottle")
    app = bottle.Bottle()

    @app.route("/protected")
    @app.route("/protected/<rest:path>")
    def protected(rest=""):
        return f"{SECRET}{bottle.request.environ.get('REMOTE_USER')}"

    @app.route("/public")
    def public():
        return f"{HELLO}{bottle.request.environ.get('REMOTE_USER')}"

    return app


def falcon_app():
    falcon = imported("falcon")

    class Resource:
        def __init__(self, words):
            self.words = words

        def on_get(self, req, resp, rest=""):
            resp.text = f"{self.words}{req.env.get('REMOTE_USER')}"

    app = falcon.App()
    app.add_route("/protected", Resource(SECRET))
    app.add_route("/protected/{rest:path}", Resource(SECRET))
    app.add_route("/public", Resource(HELLO))
    return app


def with_rest_framework(settings):
    """Set Django up; the routes of a router of Django REST framework, if that is there."""
    has_rest_framework = importlib.util.find_spec("rest_framework") is not None
    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None, SECRET_KEY="k" * 50,
            INSTALLED_APPS=["rest_framework"] if has_rest_framework else [],
            REST_FRAMEWORK={"UNAUTHENTICATED_USER": None, "DEFAULT_AUTHENTICATION_CLASSES": [],
                            "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"]})
        imported("django").setup()
        logging.getLogger("django").setLevel("CRITICAL")  # not each of some thousand 404s
    if not has_rest_framework:
        return []
    views, response = imported("rest_framework.viewsets"), imported("rest_framework.response")

    class Secrets(views.ViewSet):
        def list(self, request, format=None):
            return response.Response(f"{SECRET}{request.META.get('REMOTE_USER')}")

    router = imported("rest_framework.routers").DefaultRouter()
    router.register("protected", Secrets, basename="protected")
    return router.urls


def cherrypy_app():
    cherrypy = imported("cherrypy")
    cherrypy.config.update({"environment": "embedded", "log.screen": False})

    class Root:
        @cherrypy.expose
        def protected(self, *rest):
            return f"{SECRET}{cherrypy.request.login}"

        @cherrypy.expose
        def admin_panel(self):
            return SECRET

        @cherrypy.expose
        def public(self):
            return f"{HELLO}{cherrypy.request.login}"

    return cherrypy.Application(Root(), "")


def pecan_app():
    pecan = imported("pecan")

    class Root:
        @pecan.expose()
        def protected(self, *rest):
            return f"{SECRET}{pecan.request.remote_user}"

        @pecan.expose()
        def public(self):
            return f"{HELLO}{pecan.request.remote_user}"

    return pecan.make_app(Root())


def turbogears_app():
    tg = imported("tg")

    class Root(tg.TGController):
        @tg.expose()
        def index(self):
            return f"{HELLO}{tg.request.remote_user}"

        @tg.expose()
        def protected(self, *rest):
            return f"{SECRET}{tg.request.remote_user}"

        @tg.expose()
        def public(self):
            return f"{HELLO}{tg.request.remote_user}"

    configurator = tg.MinimalApplicationConfigurator()
    configurator.update_blueprint({"root_controller": Root()})
    return configurator.make_wsgi_app()


def with_handler_of_the_rest(make, name):
    """A framework whose pages are all served by one method, which gets the path."""
    def serve(self, *rest):
        return SECRET if rest == ("page",) else HELLO

    if make is cherrypy_app:
        cherrypy = imported("cherrypy")
        return cherrypy.Application(type("Root", (), {name: cherrypy.expose(serve)})(), "")
    if make is pecan_app:
        pecan = imported("pecan")
        return pecan.make_app(type("Root", (), {name: pecan.expose()(serve)})())
    tg = imported("tg")
    configurator = tg.MinimalApplicationConfigurator()
    root = type("Root", (tg.TGController,), {name: tg.expose()(serve)})()
    configurator.update_blueprint({"root_controller": root})
    return configurator.make_wsgi_app()


def morepath_app():
    morepath = imported("morepath")

    class App(morepath.App):
        pass

    class Root:
        pass

    class Secret:
        def __init__(self, absorb=""):
            pass

    App.path(model=Root, path="/")(lambda: Root())
    App.path(model=Secret, path="/protected", absorb=True)(lambda absorb: Secret(absorb))

    def secret(self, request):
        return f"{SECRET}{request.remote_user}"

    App.view(model=Secret)(secret)
    App.view(model=Root, name="protected")(secret)
    App.view(model=Root, name="public")(lambda self, request: f"{HELLO}{request.remote_user}")
    return App()


def django_app():
    imported("django")
    conf, http = imported("django.conf"), imported("django.http")
    urls, wsgi = imported("django.urls"), imported("django.core.handlers.wsgi")

    def view(words):
        return lambda request, rest="": http.HttpResponse(
            f"{words}{request.META.get('REMOTE_USER')}", content_type="text/plain")

    rest = with_rest_framework(conf.settings)
    urlconf = types.ModuleType("urlconf")
    urlconf.urlpatterns = [
        urls.re_path(r"(?i)^protected/?$", view(SECRET)),
        urls.path("protected/<path:rest>", view(SECRET)),
        urls.re_path(r"(?i)^admin/?$", view(SECRET)),
        urls.path("public", view(HELLO)),
        *rest,
    ]
    conf.settings.ROOT_URLCONF = urlconf
    return wsgi.WSGIHandler()


def pyramid_app():
    config = imported("pyramid.config").Configurator()
    response = imported("pyramid.response").Response
    config.add_route("protected", "/protected")
    config.add_route("deeper", "/protected/*rest")
    config.add_route("public", "/public")
    for route, words in ("protected", SECRET), ("deeper", SECRET), ("public", HELLO):
        config.add_view(
            lambda request, words=words: response(f"{words}{request.remote_user}"),
            route_name=route)
    return config.make_wsgi_app()


def pyramid_traversal_app():
    """Walks along a tree of resources, and back at `..`."""
    response = imported("pyramid.response").Response

    class Secret(dict):
        pass

    tree = {"protected": Secret(deeper=Secret()), "public": {}, "x": {"y": {}}}
    config = imported("pyramid.config").Configurator(root_factory=lambda request: tree)
    config.add_view(lambda request: response(f"{SECRET}{request.remote_user}"), context=Secret)
    config.add_view(lambda request: response(f"{HELLO}{request.remote_user}"), context=dict)
    config.add_view(lambda request: response(f"{SECRET}{request.remote_user}"), context=dict,
                    name="protected")
    return config.make_wsgi_app()


def werkzeug_app():
    """Mounts the secret by the prefix of the path."""
    middleware = imported("werkzeug.middleware.dispatcher")
    return middleware.DispatcherMiddleware(says(HELLO), {"/protected": says(SECRET)})


# --- Applications by hand, each with a reading of its own ---------------------------------------


def says(words):
    def app(environ, start_response):
        body = f"{words}{environ.get('REMOTE_USER')}".encode()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body]

    return app


def is_secret(path):
    return path == "/protected" or path.startswith("/protected/")


def rewriting(app, read):
    """Middleware that hands on what it reads."""
    return lambda environ, start_response: app(
        {**environ, "PATH_INFO": read(environ["PATH_INFO"])}, start_response)


# --- Requests ---------------------------------------------------------------------------------

SPELLINGS = spellings(400)


def get(app, path, authorization=None):
    """Status and body of the answer."""
    environ = {"PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": ""}
    if authorization:
        environ["HTTP_AUTHORIZATION"] = authorization
    setup_testing_defaults(environ)
    status = []
    iterable = app(environ, lambda line, headers, exc_info=None: status.append(line))
    try:
        return status[0], b"".join(iterable).decode()
    finally:
        getattr(iterable, "close", lambda: None)()


def guarded_get(app, path, authorization=None, rule="/protected"):
    """The same from behind the guard; with a validator on both sides if the path passes one."""
    if path[:1] != "/":
        return get(BearerAuthMiddleware(app, SIGNER, protect=[rule]), path, authorization)
    guarded = BearerAuthMiddleware(validator(app), SIGNER, protect=[rule])
    return get(validator(guarded), path, authorization)


def serves_secret(app, path):
    try:
        return SECRET in get(app, path)[1]
    except ValueError:  # the application's own trouble with the path
        return False


def secret_spellings(app):
    return [path for path in SPELLINGS if path != "/protected" and serves_secret(app, path)]


def passed(app, paths):
    """Those of the paths that are let through without a token."""
    answers = {path: guarded_get(app, path) for path in paths}
    return [path for path, (status, body) in answers.items()
            if status != "401 Unauthorized" or SECRET in body]


FRAMEWORKS = [
    flask_app, bottle_app, falcon_app, django_app, pyramid_app, pyramid_traversal_app, werkzeug_app,
    cherrypy_app, pecan_app, turbogears_app, morepath_app,
]


def readings(name, paths=tuple(zip(SPELLINGS, SPELLINGS))):
    """What a reader makes of the paths, each with the spelling that it comes from."""
    made = []
    for spelling, path in paths:
        try:
            made.append((spelling, READERS[name](path)))
        except ValueError:  # the reader's own trouble with the path
            pass
    return made


@pytest.fixture(params=FRAMEWORKS, ids=lambda make: make.__name__)
def framework(request):
    return request.param()


@pytest.fixture(scope="module")
def leaks():
    """The spellings that the guard lets through in front of any application."""
    return set(passed(says(SECRET), SPELLINGS))


# --- Tests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/protected", "/protected/deeper"])
def test_framework_with_token_serves_the_secret_to_its_subject(framework, path):
    status, body = guarded_get(framework, path, TOKEN)

    assert status == "200 OK"
    assert body == SECRET + "alice"


@pytest.mark.parametrize("path", ["/protected", "/protected/deeper"])
def test_framework_without_token_is_not_reached(framework, path):
    status, body = guarded_get(framework, path)

    assert status == "401 Unauthorized"
    assert SECRET not in body


def test_framework_serves_public_paths_without_token(framework):
    status, body = guarded_get(framework, "/public")

    assert status == "200 OK"
    assert body == HELLO + "None"


def test_framework_serves_the_secret_under_no_spelling(framework):
    paths = secret_spellings(framework)

    assert len(paths) >= 5
    assert passed(framework, paths) == []


@pytest.mark.parametrize("name", ["lower", "strip", "no controls", "urlsplit"])
def test_bottle_behind_middleware_that_reads_paths_serves_no_secret(name):
    app = rewriting(bottle_app(), READERS[name])
    paths = secret_spellings(app)

    assert len(paths) >= 20
    assert passed(app, paths) == []


@pytest.mark.parametrize("path", ["/admin", "/ADMIN", "/adm\xc4\xb1n", "/adm\xc4\xb0n"], ids=ascii)
def test_django_route_that_ignores_case_serves_no_secret(path):
    app = django_app()

    status, body = guarded_get(app, path, rule="/admin")

    assert serves_secret(app, path)
    assert status == "401 Unauthorized"
    assert SECRET not in body


@pytest.mark.parametrize("path", ["/admin-panel", "/admin;panel", "/admin?panel", "/admin\\panel"])
def test_cherrypy_that_reads_punctuation_alike_serves_no_secret(path):
    app = cherrypy_app()

    status, body = guarded_get(app, path, rule="/admin_panel")

    assert serves_secret(app, path)
    assert (status, SECRET in body) == ("401 Unauthorized", False)


@pytest.mark.parametrize("make, path", [
    (cherrypy_app, "/public/__self__/protected"), (cherrypy_app, "/public/--self--/protected"),
    (cherrypy_app, "/__class__/protected/x"), (pecan_app, "/__class__/protected/x"),
    (turbogears_app, "/index/__self__/protected"), (turbogears_app, "/index/--self--/protected"),
])
@pytest.mark.parametrize("rules", [
    {"exempt": ["/public", "/index"]}, {"protect": ["/protected"]}], ids=repr)
def test_framework_that_walks_attributes_serves_no_secret(make, path, rules):
    app = make()

    status, _ = get(BearerAuthMiddleware(app, SIGNER, **rules), path)

    assert serves_secret(app, path)
    assert status == "401 Unauthorized"


@pytest.mark.parametrize("make, name, path", [
    (cherrypy_app, "default", "/default/page"), (cherrypy_app, "index", "/index/page"),
    (pecan_app, "_default", "/_default/page"), (turbogears_app, "_default", "/_default/page"),
    (turbogears_app, "_default", "/-default/page"),
])
def test_framework_with_a_handler_of_the_rest_serves_no_secret(make, name, path):
    app = with_handler_of_the_rest(make, name)

    status, _ = guarded_get(app, path, rule="/page")

    assert serves_secret(app, path)
    assert status == "401 Unauthorized"


def test_django_rest_framework_serves_no_secret_for_a_suffix():
    imported("rest_framework")
    app = django_app()

    for path in ("/protected.json", "/protected.json/"):
        assert serves_secret(app, path)
        assert passed(app, [path]) == []


@pytest.mark.parametrize("name", READERS)
def test_reader_serves_the_secret_under_no_spelling(name, leaks):
    paths = {path for path, read in readings(name) if is_secret(read)}

    assert len(paths) >= 20
    assert sorted(paths & leaks) == []


@pytest.mark.parametrize("name", READERS)
def test_reader_of_what_another_has_read_serves_the_secret_under_no_spelling(name, leaks):
    once = readings(name)
    paths = {path for second in READERS for path, read in readings(second, once) if is_secret(read)}

    assert len(paths) >= 50
    assert sorted(paths & leaks) == []


def test_reader_of_what_two_others_have_read_serves_the_secret_under_no_spelling(leaks):
    dice = random.Random(1)
    chains = dice.sample([(first, second) for first in READERS for second in READERS], 100)
    paths = set()

    for first, second in chains:
        twice = readings(second, readings(first))
        third = dice.choice(list(READERS))
        paths.update(path for path, read in readings(third, twice) if is_secret(read))

    assert len(paths) >= 200
    assert sorted(paths & leaks) == []
