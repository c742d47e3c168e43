"""The expansion of the losses in the scale ε: its terms, and the paths of single draws."""
