"""Ways to compute the second-order regularizers, measured side by side: `python -m benchmarks.estimators`."""
