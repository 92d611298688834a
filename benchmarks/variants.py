"""Find the faster TensorFlow build for a precision on this machine: what VARIANT=auto rests on.

.venv/bin/python benchmarks/variants.py [--precision avx_bfloat16] [--rounds 10]
"""

from interleaved import compare, make_job, make_parser, measure


def main() -> None:
    """Compare ITEX with stock TensorFlow."""
    arguments = make_parser(__doc__).parse_args()
    itex, stock = (make_job(arguments, VARIANT=variant) for variant in ("itex", "stock"))
    compare(arguments.rounds, "itex", lambda: measure(itex), "stock", lambda: measure(stock))


if __name__ == "__main__":
    main()
