"""The ways to spell a path, and to read it: for the tests of the guard and the fuzzing.

READERS are the things that an application may do to a path before it looks it up. MUTATIONS are the
ways to spell a path so that some of them lead back to it. PIECES are for paths made at random.
"""

import posixpath
import random
import re
from urllib.parse import unquote, urlsplit


def each_segment(pattern):
    return lambda path: "/".join(re.sub(pattern, "", name) for name in path.split("/"))


READERS = {
    "raw": lambda path: path,
    "urlsplit": lambda path: urlsplit(path).path,
    "decode": unquote,
    "decode twice": lambda path: unquote(unquote(path)),
    "decode as latin-1": lambda path: unquote(path, "latin-1"),
    "decode bytes": lambda path: unquote(path.encode("latin-1")),
    "utf-8 ignoring": lambda path: path.encode("latin-1").decode("utf-8", "ignore"),
    "normpath": lambda path: posixpath.normpath(path) if path else path,
    "merge slashes": lambda path: re.sub("/+", "/", path),
    "add a slash": lambda path: "/" + path.lstrip("/"),
    "lower": str.lower,
    "case fold": str.casefold,
    "backslashes": lambda path: path.replace("\\", "/"),
    "no parameters": each_segment(";.*"),
    "no parameters at all": lambda path: path.split(";")[0],
    "no query": lambda path: path.split("?")[0],
    "no fragment": lambda path: path.split("#")[0],
    "no suffix": lambda path: re.sub(r"(?<=[^/])\.[^./]*(/?)\Z", r"\1", path),
    "no suffixes": lambda path: re.sub(r"(/[^/.]+)(\.[a-z0-9]+)+$", r"\1", path),
    "no at signs": each_segment(r"\A@@"),
    "no plus before a view": lambda path: re.sub(r"/\++([^/]*/?)\Z", r"/\1", path),
    "any first character": lambda path: "/" + path[1:],
    "no trailing dots": each_segment(r"(?<=[^. ])[. ]+\Z"),
    "strip": str.strip,
    "strip segments": lambda path: "/".join(name.strip() for name in path.split("/")),
    "no controls": lambda path: re.sub("[\x00-\x1f\x7f]", "", path),
    "no format characters": each_segment("[\xad\u200b-\u200f\u202a-\u202e\u2060\ufeff]"),
    "no stream": each_segment(r":{1,2}\$.*"),
    "attributes": lambda path: re.sub(r"\A.*/(__|--)self(__|--)(?=/)", "", path),
    "handlers": lambda path: re.sub(r"\A/(default|_default|index|get_one)(?=/)", "", path),
    "to the nul": lambda path: path.split("\0")[0],
}


def inserted(path, text, where):
    return path[:where] + text + path[where:]


def somewhere(*texts):
    return lambda path, dice: inserted(path, dice.choice(texts), dice.randint(0, len(path)))


def at_a_slash(*texts):
    """Puts a text before a slash, or at the end."""
    def mutate(path, dice):
        ends = [match.start() for match in re.finditer("/|$", path)]
        return inserted(path, dice.choice(texts), dice.choice(ends))

    return mutate


def before(*texts):
    return lambda path, dice: dice.choice(texts) + path


def behind(*texts):
    return lambda path, dice: path + dice.choice(texts)


def each_character(change, share):
    return lambda path, dice: "".join(
        change(character) if dice.random() < share else character for character in path)


def percent(character):
    return f"%{ord(character):02x}" if ord(character) < 256 else character


MUTATIONS = [
    each_character(percent, 0.1),
    each_character(percent, 0.1),
    each_character(str.swapcase, 0.3),
    each_character(lambda character: "\\" if character == "/" else character, 0.5),
    each_character(lambda character: "//" if character == "/" else character, 0.5),
    each_character(lambda character: "%25" if character == "%" else character, 1),
    at_a_slash("/", "/.", "/./.", "/x/..", "/x/y/../..", "/..", "/%2e%2e", "/..;", "/...",
               "/a%2fb/.."),
    at_a_slash(";", ";v=1", ";v=1;w", ";a/b", ";a\\b", ";a%2fb", "/;", "/;v"),
    at_a_slash(".", "..", " ", ". .", "%20", "\t", "\x85", "\xa0", "\xc2\xa0", "\xe2\x80\xa8."),
    before("/", "//h", "http://h", "HTTPS://u@h:1", "x:", "//a\\b", "http://a%2fb", "//",
           "/x/..", " "),
    before("\\", "\\\\h", "\0", "\t", "\x01", "/.", "/;x", "/ ", "\xff", "http:", "/h/.."),
    behind("/", "//", "?x", "#x", "?x/../y", "\0", "\0x", "%00", "\n", "\r\n", " ", ".", ";x",
           "/?x"),
    somewhere("\x01", "\x1f", "\x7f", "\t", "\n", "\xff", "\xc3", "\x80", "\xe3\x81",
              "\xc3\xa9", "%ff", "\xc2\xad", "\xe2\x80\x8b", "\xef\xbb\xbf", "%e2%80%8b"),
    lambda path, dice: path.lstrip("/"),
    lambda path, dice: path.replace("/", "/@@"),
    lambda path, dice: re.sub(r"/([^/]*)\Z", r"/+\1", path),
    lambda path, dice: "x" + path[1:],
    behind(".json", ".json/", ".tar.gz", ".a"),
    before("/x/__self__", "/--self--", "/default", "/index"),
    at_a_slash("::$DATA", "::$INDEX_ALLOCATION", ":$I30:$INDEX_ALLOCATION"),
]


def mutated(path, dice, most=4):
    """Spell a path in up to so many unusual ways."""
    for mutate in dice.choices(MUTATIONS, k=dice.randint(1, most)):
        path = mutate(path, dice)
    return path


def spellings(count):
    """So many ways to write a protected path, always the same ones."""
    dice = random.Random(1)
    made = set()
    while len(made) < count:
        made.add(mutated("/protected" + dice.choice(["", "", "/", "/deeper"]), dice))
    return sorted(made)


PIECES = [
    "/", "/protected", "protected", "/public", "/x", ".", "..", "/..", "/.", "%2e", "%2f", "%5c",
    "%25", "%70", "%70rotected", "\\", ";", ";v=1", "?", "#", "@@", ".json", ".tar.gz", " ", "\t",
    "\0", "\n", "%00", "%0a", "%20", "\x85", "\xa0", "\xc3\xa9", "\xe2\x80\xa8", "http:", "//host",
    "PROTECTED", "%c0%af", "%e9", "%3b", "%3f", "%23", "%40%40", "_", "-", "*", "+", "",
    "\xe2\x80\x8b", "\xef\xbc\x8f", "\xe2\x80\xa5", "/a", "/b", "/my files", "/caf\xc3\xa9",
]
