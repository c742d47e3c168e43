"""The exact losses of NFM and NoisyMix: by quadrature, by Monte Carlo, and as they are trained."""
