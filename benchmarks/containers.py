"""Find what a container costs: throughput of one case in a container over that of the same case natively.

.venv/bin/python benchmarks/containers.py [--precision avx_fp32] [--rounds 10] [--container-cli docker]

The images must be there (`cmake -DBACKEND=docker`, `make`), and the native VARIANT is the images'.
"""

import shlex
import tempfile
from pathlib import Path

from interleaved import compare, kpi_of, make_job, make_parser, measure

from cnnbench.run.container import ContainerOptions, ContainerRun
from cnnbench.run.images import ImageOptions


def main() -> None:
    """Compare container and native."""
    parser = make_parser(__doc__)
    parser.add_argument("--container-cli", default="docker")
    parser.add_argument("--registry", default="")
    parser.add_argument("--release", default="latest")
    arguments = parser.parse_args()
    job = make_job(arguments, VARIANT="itex")
    options = ContainerOptions(
        cli=shlex.split(arguments.container_cli),
        images=ImageOptions(arguments.registry, arguments.release),
        extra=(),
        hang_s=300,
        pull_timeout_s=None,
    )

    def run_in_container() -> float:
        with tempfile.TemporaryDirectory() as root:
            return kpi_of(ContainerRun(job, options, Path(root)).run()[0])

    compare(arguments.rounds, "container", run_in_container, "native", lambda: measure(job))


if __name__ == "__main__":
    main()
