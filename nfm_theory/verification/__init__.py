"""The verdict on an expansion: evidence, report, and the error up to large scales."""
