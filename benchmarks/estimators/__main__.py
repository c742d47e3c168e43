"""`python -m benchmarks.estimators`: every method on every case, in multiples of a forward pass or training step."""

import argparse
import sys

from .cases import SETTINGS, STANDARD
from .run import Options, Record, about, run


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators", description=__doc__)
    parser.add_argument(
        "--case", nargs="+", default=STANDARD, choices=SETTINGS, metavar="NAME", help=", ".join(SETTINGS)
    )
    parser.add_argument("--quick", action="store_true", help="few repeats and at most 2 s for a method")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--budget", type=float, help="seconds for one method (default 20, with --quick 2)")
    parser.add_argument("--repeats", type=int, help="timed calls of one method (default 9, with --quick 3)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="measure only what has one of these texts in `quantity / method`",
    )
    parser.add_argument("--json", help="keep the numbers in this file; what is in it is not measured again")
    known = parser.add_mutually_exclusive_group()
    known.add_argument(
        "--again", action="store_true", help="measure what is asked for again, keep the rest of the file"
    )
    known.add_argument("--fresh", action="store_true", help="forget what is in the file")
    args = parser.parse_args(arguments)
    options = Options(
        repeats=args.repeats or (3 if args.quick else 9),
        budget=args.budget or (2.0 if args.quick else 20.0),
        threads=args.threads,
        device=args.device,
        only=lambda quantity, name: any(text in f"{quantity} / {name}" for text in args.only),
        again=args.again,
    )
    try:
        record = Record(args.json, about(options), fresh=args.fresh)
    except ValueError as error:
        parser.error(str(error))
    run(args.case, record, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
