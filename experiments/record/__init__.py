"""The record of results: the ledger, its entries, files, and where each result comes from."""
