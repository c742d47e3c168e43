"""`python -m nfm_theory.cli` is the command `nfm`."""

from . import main

if __name__ == "__main__":
    main()
