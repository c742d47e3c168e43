"""Everything that needs data or training: the digits, small networks, the verification run, the command `nfm`.

Imports `nfm_theory`, never the other way round.
"""
