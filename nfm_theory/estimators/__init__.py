"""The regularizers as estimators, exact or by random probes with standard errors."""
