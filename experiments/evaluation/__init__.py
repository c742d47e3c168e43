"""Measurements on trained networks, grouped into suites, and the test sets that they need."""

from .subject import Subject, at_size, few_tests
from .suites import SUITES, run_suite, suites_of

__all__ = ["SUITES", "Subject", "at_size", "few_tests", "run_suite", "suites_of"]
