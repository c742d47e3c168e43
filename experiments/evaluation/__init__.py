"""Measurements on trained networks, suite by suite, and the test sets that they need."""

from .suites import SUITES, Subject, run_suite

__all__ = ["SUITES", "Subject", "run_suite"]
