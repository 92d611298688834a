"""Compare instances that share one set of weights with separate processes: throughput, or with --memory their memory.

.venv/bin/python benchmarks/weight_sharing.py --precision avx_bfloat16 [--memory] [--rounds 6]
"""

from interleaved import compare, make_job, make_parser, measure


def main() -> None:
    """Compare, both with the build that can share."""
    parser = make_parser(__doc__)
    parser.add_argument("--memory", action="store_true", help="compare resident MiB instead of images/s")
    arguments = parser.parse_args()
    key = "Resident memory" if arguments.memory else "Throughput"
    shared, separate = (make_job(arguments, VARIANT="stock", WEIGHT_SHARING=sharing) for sharing in ("True", "False"))
    compare(arguments.rounds, "shared", lambda: measure(shared, key), "separate", lambda: measure(separate, key))


if __name__ == "__main__":
    main()
