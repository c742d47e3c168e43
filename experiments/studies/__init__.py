"""Our own studies: trained networks, verifications, decompositions, and what the ledger says of them."""
