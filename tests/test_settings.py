"""Settings from the environment, and the keys."""

import errno
import io
import itertools
import os
import threading
import time
from pathlib import Path

import pytest

import jwtserver
import wsgi_auth
from jwtserver import Settings, SettingsError, load_keys, prepare_keys, replace_keys
from support import KEY, for_each, python_at_once

OTHER = KEY[::-1]


@for_each("variable, text, field, value", [
    ("DATABASE", "x.db", "database", "x.db"),
    ("DATABASE", "postgresql://h/x", "database", "postgresql://h/x"),
    ("SECRET", KEY, "secret", KEY),
    ("SECRET_FILE", "x.key", "secret_file", "x.key"),
    ("ISSUER", "https://x", "issuer", "https://x"),
    ("AUDIENCE", "tool", "audience", "tool"),
    ("TOKEN_LIFETIME", "60", "token_lifetime", 60),
    ("SESSION_LIFETIME", "86400", "session_lifetime", 86400),
    ("LEEWAY", "0", "leeway", 0),
    ("LEEWAY", "30", "leeway", 30),
    ("CORS_ORIGINS", "https://a, http://b:1,", "cors_origins", ("https://a", "http://b:1")),
    ("CORS_ORIGINS", "*", "cors_origins", ("*",)),
    ("LOGIN_FAILURES", "3/60", "login_failures", (3, 60)),
    ("RATE_LIMIT", "300/60", "rate_limit", (300, 60)),
    ("TRUSTED_PROXIES", "0", "trusted_proxies", 0),
    ("TRUSTED_PROXIES", "2", "trusted_proxies", 2),
    ("PROTECT", "/a; POST /b ;", "protect", ("/a", "POST /b")),
    ("PROTECT", "/my files; GET,PUT /b c", "protect", ("/my files", "GET,PUT /b c")),
    ("EXEMPT", "/a/b", "exempt", ("/a/b",)),
    ("PREFIX", "/auth/v1/", "prefix", "/auth/v1"),
    ("PBKDF2_ITERATIONS", "10000000", "pbkdf2_iterations", 10_000_000),
    ("HOST", "::", "host", "::"), ("PORT", "0", "port", 0),
])
def test_variable_sets_its_field(variable, text, field, value):
    settings = Settings.from_environ({f"JWTSERVER_{variable}": text})

    assert getattr(settings, field) == value


@for_each("variable, text", [
    ("DATABASE", "mysql://host/x"), ("DATABASE", ":memory:"), ("DATABASE", "postgres:u:word@h"),
    *(("TOKEN_LIFETIME", text) for text in (
        "0", "-1", "1.5", "soon", "1e9", " 1", "\u0661", "9" * 5000, "316224001")),
    ("ISSUER", "\udcff"), ("AUDIENCE", "\udcff"), ("THREADS", "1"),
    *(("PBKDF2_ITERATIONS", text) for text in ("0", "10000001", "x")),
    *((variable, text) for variable in ("LOGIN_FAILURES", "RATE_LIMIT") for text in (
        "5", "5/", "/900", "0/900", "5/0", "5/900/1", "-5/900", "5 / 900", "5/15m", "off")),
    ("SESSION_LIFETIME", "0"), ("LEEWAY", "-1"), ("LEEWAY", "0.5"), ("LEEWAY", "x"),
    ("PORT", "65536"), ("PORT", "udp://10.0.0.1:80"), ("HOST", "\udcff"),
    ("TRUSTED_PROXIES", "-1"), ("TRUSTED_PROXIES", "10.0.0.1"),
    *(("PREFIX", text) for text in ("auth", "//", "//a", "/a b", "/a/../b", "/%61", "/a?b")),
    *((variable, text) for variable in ("PROTECT", "EXEMPT") for text in (
        "/a,/b", "/a:admin", "/a=admin", "/x;GET,POST /a,/b", "/my files:admin", "/my=x files",
        "/articles GET,POST")),
])
def test_variable_that_cannot_be_used_is_named(variable, text):
    with pytest.raises(SettingsError, match=f"^JWTSERVER_{variable} must be ") as caught:
        Settings.from_environ({f"JWTSERVER_{variable}": text})

    assert "\n" not in str(caught.value)


@for_each("field, value, read", [
    ("database", Path("x.db"), "x.db"), ("secret_file", Path("x.key"), "x.key"),
    ("token_lifetime", "60", 60), ("login_failures", "3/60", (3, 60)),
    ("login_failures", [3, 60], (3, 60)), ("rate_limit", "300/60", (300, 60)),
    ("cors_origins", "https://a,https://b", ("https://a", "https://b")),
    ("protect", "/a", ("/a",)), ("protect", ["/a:b", "/c,d=e"], ("/a:b", "/c,d=e")),
    ("protect", {"/a": "admin"}, {"/a": "admin"}), ("prefix", "/auth/", "/auth"),
    ("head_timeout", 0.5, 0.5), ("head_timeout", "5", 5),
])
def test_field_accepts_the_text_of_its_variable_and_python_values(field, value, read):
    assert getattr(Settings(**{field: value}).checked(), field) == read


@for_each("field, value", [
    ("database", None), ("database", ""), ("secret", [KEY]), ("secret", KEY.encode()),
    ("secret_file", None), ("issuer", 1), ("token_lifetime", 1.5), ("token_lifetime", True),
    ("token_lifetime", 0), ("login_failures", 5), ("login_failures", None),
    ("login_failures", (5, 0)), ("rate_limit", (1, 2, 3)), ("cors_origins", 1),
    ("protect", None), ("protect", [1]), ("prefix", None), ("prefix", "auth"),
    ("pbkdf2_iterations", None), ("body_rate", 0.0), ("body_rate", float("nan")),
    ("head_timeout", -1.0), ("idle_timeout", float("inf")),
])
def test_field_that_cannot_be_used_is_named(field, value):
    with pytest.raises(SettingsError, match=f"^JWTSERVER_{field.upper()} must "):
        jwtserver.create_app(Settings(**{field: value}))

    assert os.listdir() == []


@for_each("text", ["no", "False", "0", "on", "TRUE", "1"])
def test_cookie_that_is_meant_as_a_switch_is_refused(text):
    with pytest.raises(SettingsError, match="^JWTSERVER_COOKIE .*; write off to turn it off$"):
        Settings.from_environ({"JWTSERVER_COOKIE": text})


@for_each("field, rules, words", [
    ("protect", {"/admin": "admin, write"}, "separate scopes with spaces, not commas: 'admin,'"),
    ("exempt", ["nope"], "not a rule: 'nope'")])
def test_rule_of_a_field_that_cannot_be_used_names_the_field(field, rules, words):
    with pytest.raises(SettingsError) as caught:
        jwtserver.create_app(Settings(**{field: rules}, secret=KEY))

    assert str(caught.value).startswith(f"JWTSERVER_{field.upper()}: {words}")


def test_blank_secret_is_refused_and_does_not_lead_to_the_key_file():
    with pytest.raises(SettingsError, match="^JWTSERVER_SECRET: "):
        jwtserver.create_app(Settings.from_environ({"JWTSERVER_SECRET": " "}))


def test_unknown_variable_causes_a_warning(caplog):
    Settings.from_environ({"JWTSERVER_TOKEN_LIFETME": "60", "JWTSERVER_X": "", "OTHER": "1"})

    assert caplog.messages == [
        "jwtserver has no such setting: JWTSERVER_TOKEN_LIFETME; did you mean"
        " 'JWTSERVER_TOKEN_LIFETIME'?", "jwtserver has no such setting: JWTSERVER_X"]


def test_variables_that_kubernetes_sets_for_a_service_are_ignored(caplog):
    environ = {
        "JWTSERVER_PORT": "tcp://10.0.0.1:80", "JWTSERVER_SERVICE_HOST": "10.0.0.1",
        "JWTSERVER_SERVICE_PORT_HTTP": "80", "JWTSERVER_PORT_80_TCP": "tcp://10.0.0.1:80"}

    assert Settings.from_environ(environ) == Settings()
    assert caplog.messages == []


def test_empty_variables_count_as_none():
    empty = {f"JWTSERVER_{name.upper()}": "" for name in jwtserver._PARSERS}

    assert Settings.from_environ(empty) == Settings()


def test_key_file_is_beside_the_database():
    assert Settings(database="data/users.db").key_file == Path("data/jwtserver.key")
    assert Settings(database="data/users.db", secret_file="k").key_file == Path("k")
    assert Settings(database="postgresql://h/x").key_file == Path("jwtserver.key")


@pytest.mark.parametrize("leeway", [10, 0])
@pytest.mark.parametrize("secret", [KEY, ""], ids=["secret", "file"])
def test_leeway_applies_to_the_tokens_of_the_service(secret, leeway):
    now = 1_700_000_000
    settings = Settings(secret=secret, leeway=leeway)
    token = jwtserver.make_signer(settings, lambda: now).sign({"sub": "alice"})

    def verify(clock):
        return jwtserver.make_signer(settings, lambda: clock).verify(token)

    assert verify(now - leeway)["sub"] == verify(now + 3599 + leeway)["sub"] == "alice"
    with pytest.raises(wsgi_auth.ImmatureSignatureError):
        verify(now - leeway - 1)
    with pytest.raises(wsgi_auth.ExpiredSignatureError):
        verify(now + 3600 + leeway)


# --- Keys


def test_secret_holds_a_key_a_line():
    assert load_keys(Settings(secret=f"{KEY}\n\n {OTHER} \r\n")) == [KEY.encode(), OTHER.encode()]


@for_each("text", ["hunter2", " ", "-----BEGIN PUBLIC KEY-----" + KEY, "\udcff"])
def test_secret_that_cannot_be_used_is_named_but_not_shown(text):
    with pytest.raises(SettingsError, match="^JWTSERVER_SECRET: ") as caught:
        load_keys(Settings(secret=text))

    assert text.strip() == "" or text not in str(caught.value)


def test_key_file_that_cannot_be_used_is_named():
    Path("jwtserver.key").write_text("short\n")

    with pytest.raises(SettingsError, match="^JWTSERVER_SECRET_FILE: jwtserver.key: .*too short"):
        load_keys(Settings())


@for_each("path", [".", "none/key"])
def test_key_file_that_is_no_file_is_named_without_a_warning(path, caplog):
    settings = Settings(secret_file=path)

    with pytest.raises(SettingsError, match=f"^JWTSERVER_SECRET_FILE: {path}: [A-Z]"):
        prepare_keys(settings)
        load_keys(settings)

    assert caplog.messages == []


@for_each("text", [
    f"{KEY} {OTHER}", f"{KEY}\\n{OTHER}", f"{KEY}\\n",
    f"{KEY}\nThe words of some other document\n",
])
def test_keys_with_spaces_are_refused(text):
    Path("jwtserver.key").write_text(text)

    for settings in (Settings(secret=text), Settings()):
        with pytest.raises(SettingsError, match="^JWTSERVER_SECRET.*: a key must be on a line"):
            load_keys(settings)


def test_key_file_that_is_a_device_causes_no_warning_about_its_mode(caplog):
    with pytest.raises(SettingsError, match="/dev/null: There is no key"):
        load_keys(Settings(secret_file="/dev/null"))

    assert caplog.messages == []


def test_key_file_may_begin_with_a_byte_order_mark():
    Path("jwtserver.key").write_bytes(b"\xef\xbb\xbf" + KEY.encode() + b"\r\n")

    assert load_keys(Settings()) == [KEY.encode()]


def test_key_file_that_cannot_be_written_whole_is_not_left(monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match="jwtserver.key: No space left on device"):
        prepare_keys(Settings())

    assert os.listdir() == []


def test_key_file_is_found_after_the_application_changes_the_folder():
    (signer := jwtserver.make_signer(Settings())).verify(signer.sign({"sub": "alice"}))
    folder = os.getcwd()
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    replace_keys(Settings(secret_file=f"{folder}/jwtserver.key"), lambda keys: [OTHER.encode()])

    with pytest.raises(wsgi_auth.InvalidSignatureError):
        signer.verify(wsgi_auth.TokenSigner(KEY).sign({"sub": "alice"}))
    signer.verify(wsgi_auth.TokenSigner(OTHER).sign({"sub": "alice"}))


def can_verify(signer, key):
    try:
        return bool(signer.verify(wsgi_auth.TokenSigner(key).sign({"sub": "alice"})))
    except wsgi_auth.InvalidSignatureError:
        return False


@pytest.fixture
def file_signer():
    """A signer that checks its file at each use, and has KEY."""
    Path("jwtserver.key").write_text(f"{KEY}\n")
    Path("jwtserver.key").chmod(0o600)
    now = itertools.count(time.time())
    return jwtserver.FileSigner(Settings(), lambda: next(now))


def test_key_file_that_was_unreadable_is_read_again_after_chmod(file_signer, monkeypatch, caplog):
    Path("jwtserver.key").write_text(f"{OTHER}\n")

    def refusing_open(path, *args, **options):
        if os.fspath(path) == file_signer._path and not os.stat(path).st_mode & 0o200:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return io.open(path, *args, **options)

    monkeypatch.setattr(jwtserver, "open", refusing_open, raising=False)  # root may read any file
    os.chmod("jwtserver.key", 0o000)
    assert can_verify(file_signer, KEY) and not can_verify(file_signer, OTHER)
    assert len(caplog.messages) == 1  # although it was read several times
    assert caplog.messages[0].endswith("jwtserver.key: Permission denied")

    os.chmod("jwtserver.key", 0o600)

    assert can_verify(file_signer, OTHER) and not can_verify(file_signer, KEY)


def test_key_file_that_could_not_be_read_for_a_moment_is_read_again(
        file_signer, monkeypatch, caplog):
    def full(*args, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    Path("jwtserver.key").write_text(f"{OTHER}\n")
    with monkeypatch.context() as context:
        context.setattr(jwtserver, "open", full, raising=False)
        assert can_verify(file_signer, KEY) and not can_verify(file_signer, OTHER)

    assert can_verify(file_signer, OTHER) and not can_verify(file_signer, KEY)
    assert len(caplog.messages) == 1


def test_key_file_that_is_malformed_is_read_once_and_logged_once(file_signer, caplog):
    Path("jwtserver.key").chmod(0o644)
    Path("jwtserver.key").write_text("short\n")

    assert can_verify(file_signer, KEY) and not can_verify(file_signer, OTHER)

    assert len(caplog.messages) == 2  # that others can read it, and that it is malformed


def test_key_file_that_two_threads_reload_at_once_is_not_forgotten(monkeypatch):
    """One thread reads a file, and another one reads the next file before the first continues."""
    written, continued = threading.Event(), threading.Event()
    load = jwtserver._load_signer

    def slow_load(*args):
        signer = load(*args)
        if threading.current_thread() is slow:
            written.set()
            continued.wait(10)
        return signer

    class Signer(jwtserver.FileSigner):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name in ("_loaded", "_signer") and written.is_set() and not continued.is_set():
                continued.set()
                slow.join(10)

    Path("jwtserver.key").write_text(f"{KEY}\n")
    now = itertools.count(time.time())
    signer = Signer(Settings(), lambda: next(now))
    slow = threading.Thread(target=signer._reload_if_changed)
    monkeypatch.setattr(jwtserver, "_load_signer", slow_load)
    replace_keys(Settings(), lambda keys: [b"second" * 10])
    slow.start()
    assert written.wait(10)
    replace_keys(Settings(), lambda keys: [OTHER.encode()])

    signer._reload_if_changed()

    assert not slow.is_alive()
    assert can_verify(signer, OTHER) and not can_verify(signer, KEY)


def test_key_file_is_created_with_one_key_for_the_owner_only():
    prepare_keys(Settings())
    first = load_keys(Settings())

    assert len(first) == 1 and len(first[0]) >= 32
    assert os.stat("jwtserver.key").st_mode & 0o777 == 0o600
    assert os.listdir() == ["jwtserver.key"]
    prepare_keys(Settings())
    assert load_keys(Settings()) == first


def test_key_file_created_by_another_process_meanwhile_is_kept():
    path = Path("jwtserver.key")
    path.write_text(f"{KEY}\n")

    jwtserver._create_file(path, [])

    assert path.read_text() == f"{KEY}\n"
    assert os.listdir() == ["jwtserver.key"]


def test_processes_that_start_at_once_agree_on_one_key():
    lines = python_at_once(6, """
settings = jwtserver.Settings()
jwtserver.prepare_keys(settings)
print(jwtserver.load_keys(settings))
""")

    assert len(lines) == 6 and len(set(lines)) == 1
    assert os.listdir() == ["jwtserver.key"]


def test_key_file_that_others_can_read_causes_a_warning(caplog):
    prepare_keys(Settings())
    load_keys(Settings())
    assert caplog.text == ""
    os.chmod("jwtserver.key", 0o640)

    load_keys(Settings())

    assert "jwtserver.key can be read by others; run: chmod 600 jwtserver.key" in caplog.text


def stale_draft(name, age=61):
    path = Path(name)
    path.write_text(f"{KEY}\n")
    os.utime(path, (time.time() - age,) * 2)


def test_replace_keys_removes_the_drafts_of_killed_processes():
    others = ["jwtserver.key.0123456789abcde", "jwtserver.key.0123456789abcdeg",
              "xjwtserver.key.0123456789abcdef", "jwtserver-key.0123456789abcdef"]
    for name in [*others, "jwtserver.key.0123456789abcdef"]:
        stale_draft(name)
    stale_draft("jwtserver.key.00000000000000aa", age=50)  # its process may still run
    os.mkdir("jwtserver.key.00000000000000bb")
    os.utime("jwtserver.key.00000000000000bb", (0, 0))
    prepare_keys(Settings())

    replace_keys(Settings(), lambda keys: [OTHER.encode()])

    assert sorted(os.listdir()) == sorted([
        *others, "jwtserver.key", "jwtserver.key.00000000000000aa",
        "jwtserver.key.00000000000000bb"])


def test_replace_keys_through_a_link_to_a_file_of_another_user_is_refused():
    """The owner of the folder could otherwise make root overwrite or disclose any file."""
    target = Path("/etc/passwd")
    if os.getuid() == 0:
        os.mkdir("private")
        target = Path("private/roots.key").absolute()
        target.write_text(f"{KEY}\n")
        target.chmod(0o600)
        os.chown(".", 65534, 65534)
    before = target.read_bytes()
    os.symlink(target, "jwtserver.key")

    with pytest.raises(SettingsError, match=f"jwtserver.key is a link to {target}, which does not"):
        replace_keys(Settings(), lambda keys: [OTHER.encode()])

    assert target.read_bytes() == before
    assert set(os.listdir()) <= {"jwtserver.key", "private"}


def test_replace_keys_with_a_draft_that_becomes_a_link_changes_no_other_file(monkeypatch):
    """By path, chown and chmod would follow the link."""
    prepare_keys(Settings())
    other = Path("other")
    other.write_text("other\n")
    other.chmod(0o644)
    os.chmod("jwtserver.key", 0o640)
    fsync = os.fsync

    def swap(descriptor):
        fsync(descriptor)
        [draft] = Path().glob("jwtserver.key.*")
        draft.unlink()
        draft.symlink_to(other.absolute())

    monkeypatch.setattr(os, "fsync", swap)
    replace_keys(Settings(), lambda keys: [OTHER.encode()])

    assert other.stat().st_mode & 0o777 == 0o644
    assert other.read_text() == "other\n"


def test_replace_keys_in_a_folder_that_is_swapped_changes_the_first_folder(monkeypatch):
    os.mkdir("folder")
    os.mkdir("other")
    for name in ("folder", "other"):
        Path(name, "jwtserver.key").write_text(f"{KEY}\n")

    def change(keys):
        os.rename("folder", "moved")
        os.symlink("other", "folder")
        return [OTHER.encode()]

    replace_keys(Settings(secret_file="folder/jwtserver.key"), change)

    assert Path("moved/jwtserver.key").read_text() == f"{OTHER}\n"
    assert Path("other/jwtserver.key").read_text() == f"{KEY}\n"


def test_key_file_of_another_user_causes_a_warning_for_root(caplog, monkeypatch):
    prepare_keys(Settings())
    load_keys(Settings())
    assert caplog.messages == []
    if os.getuid() == 0:
        os.chown("jwtserver.key", 65534, 65534)
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    load_keys(Settings())

    assert caplog.messages == ["jwtserver.key belongs to another user, and so do its keys;"
                               " run jwtserver as that user, not as root"]


def test_replace_keys_through_a_link_keeps_link_mode_and_owner():
    os.mkdir("secrets")
    target = Path("secrets/key")
    target.write_text(f"{KEY}\n")
    target.chmod(0o440)
    if os.getuid() == 0:
        for path in (".", target):
            os.chown(path, 65534, 65534)
    before = target.stat()
    os.symlink("secrets/key", "jwtserver.key")

    replace_keys(Settings(), lambda keys: [OTHER.encode(), *keys])

    after = target.stat()
    assert target.read_text() == f"{OTHER}\n{KEY}\n"
    assert os.path.islink("jwtserver.key")
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
    assert os.listdir("secrets") == ["key"]


def test_replace_keys_where_files_have_no_owner_replaces_them(monkeypatch):
    """As on Windows, where a folder cannot be opened either."""
    monkeypatch.delattr(os, "fchown")
    monkeypatch.setattr(os, "supports_dir_fd", set())
    stale_draft("jwtserver.key.0123456789abcdef")
    prepare_keys(Settings())

    replace_keys(Settings(), lambda keys: [OTHER.encode()])

    assert Path("jwtserver.key").read_text() == f"{OTHER}\n"
    assert os.listdir() == ["jwtserver.key"]


@pytest.mark.skipif(not hasattr(os, "fchown"), reason="files have no group")
@for_each("mode, user_id, group_kept", [
    (0o600, 1000, False), (0o640, 1000, True), (0o600, 0, True)])
def test_replace_keys_keeps_the_group_if_it_has_rights_or_root_asks(
    mode, user_id, group_kept, monkeypatch,
):
    """A user cannot give a file to a group without being in it."""
    prepare_keys(Settings())
    os.chmod("jwtserver.key", mode)
    groups = []
    monkeypatch.setattr(os, "geteuid", lambda: user_id)
    monkeypatch.setattr(os, "fchown", lambda file, owner, group: groups.append(group))

    replace_keys(Settings(), lambda keys: [OTHER.encode()])

    assert groups == [os.stat("jwtserver.key").st_gid if group_kept else -1]


def test_replace_keys_failing_leaves_no_draft():
    prepare_keys(Settings())

    def change(keys):
        os.rename("jwtserver.key", "moved")
        os.mkdir("jwtserver.key")  # which no file can replace
        return keys

    with pytest.raises(SettingsError, match="jwtserver.key: Is a directory"):
        replace_keys(Settings(), change)

    assert sorted(os.listdir()) == ["jwtserver.key", "moved"]


def test_replace_keys_of_the_environment_is_refused():
    with pytest.raises(SettingsError, match="JWTSERVER_SECRET"):
        replace_keys(Settings(secret=KEY), lambda keys: keys)
