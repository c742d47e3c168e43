"""Tests see no ledger of whoever runs them."""

import pytest


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NFM_LEDGER", str(tmp_path_factory.getbasetemp() / "own" / "experiments.jsonl"))
