"""Our own studies.

recorded   what a recorded study is, and its runner     commands   `python -m experiments study NAME`
expansion, bounds, validity, decomposition, explore, where     the recorded studies
study, gains                                            what the ledger says about schemes
networks, validity_networks                             the trained networks
maps, validity_summary                                  what figures and pages show
"""
