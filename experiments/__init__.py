"""Recipes, training, results and tables: everything that needs data or training.

Run it from a clone of the repository: `python -m experiments --help`. It imports `nfm_theory`, never the other way.
"""
