"""The examples in the docstrings of both modules."""

import doctest

import pytest

import jwtserver
import wsgi_auth

EXAMPLES = [example for module in (wsgi_auth, jwtserver)
            for example in doctest.DocTestFinder().find(module) if example.examples]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_docstring_examples_give_the_results_that_they_show(example):
    report = []

    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)

    assert result.failed == 0, "".join(report)
