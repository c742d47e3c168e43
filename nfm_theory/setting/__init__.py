"""The setting of the theory: laws, draws, layers, pointwise losses, quadrature rules, results."""
