"""The report on a network: what NFM adds at each layer, how far the theory reaches there, and how robust the layer is."""
