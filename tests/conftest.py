"""Coverage is measured in the first case of each test, and of each name that it takes: it makes a test slower by half."""

import pytest


def pytest_collection_modifyitems(items):
    seen = set()
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        case = item.nodeid.partition("[")[0], *(value for value in values if isinstance(value, str))
        if case in seen:
            item.add_marker(pytest.mark.no_cover)
        seen.add(case)
