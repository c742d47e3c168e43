"""The Taylor expansion of the losses in the scale ε: its terms, and the losses along single draws."""
