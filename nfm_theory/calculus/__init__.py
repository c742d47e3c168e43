"""Derivatives: exact where PyTorch is wrong, along directions, and of second order without nested differentiation."""
