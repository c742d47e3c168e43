"""Coverage is measured in the first case of each test alone: it makes a test slower by half."""

import pytest


def pytest_collection_modifyitems(items):
    seen = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test in seen:
            item.add_marker(pytest.mark.no_cover)
        seen.add(test)
