"""Derivatives: right where PyTorch is not, along directions, and of second order without nesting."""
