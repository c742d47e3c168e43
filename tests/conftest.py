"""Coverage makes a test slower by half: cases that differ in numbers or paths alone have it in the first of them."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    seen = set()
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        kind = (repr(value) for value in values if not isinstance(value, int | float | Path))
        case = item.nodeid.partition("[")[0], *kind
        if case in seen:
            item.add_marker(pytest.mark.no_cover)
        seen.add(case)
