"""Figures, one file per claim; read `experiments/results`, write `figures/out` (generated, not tracked)."""
