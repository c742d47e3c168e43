"""The record of results: ledger, entries, files, and where a result comes from."""
