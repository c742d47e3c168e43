"""The report on a network: for each layer what NFM adds, how far the theory reaches, and how robust the layer is."""
