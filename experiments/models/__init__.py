"""Networks: small ones for verification, and those of the papers."""
