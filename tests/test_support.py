"""The helper that could hide the failures of other tests."""

import pytest

from support import for_each


def test_for_each_runs_all_rows_and_names_those_that_failed():
    ran = []

    @for_each("text, error", [
        ("1", ValueError), ("a", ValueError), pytest.param("b", TypeError, id="other_error")])
    def check(text, error, fixture):
        ran.append((text, fixture))
        with pytest.raises(error):
            int(text)

    with pytest.raises(AssertionError) as caught:
        check(fixture="f")

    assert ran == [("1", "f"), ("a", "f"), ("b", "f")]
    first, second = str(caught.value).splitlines()
    assert first.startswith("('1', <class 'ValueError'>): Failed: DID NOT RAISE")
    assert second.startswith("other_error: ValueError: invalid literal for int()")


def test_for_each_of_a_dict_names_rows_by_its_keys():
    @for_each("value", {"good": [1], "bad": []})
    def check(value):
        assert value

    with pytest.raises(AssertionError, match="^'bad': AssertionError: "):
        check()


def test_for_each_of_no_rows_is_refused():
    with pytest.raises(AssertionError):
        for_each("value", [])
