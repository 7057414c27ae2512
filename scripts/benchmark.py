"""Compare arms on held-out tasks; the same as `lepton benchmark`."""

import sys

import tyro

from lepton_rl.agents.benchmark import BenchmarkConfig, CellsFailed, benchmark, summary_table
from lepton_rl.errors import InputError

if __name__ == "__main__":
    config = tyro.cli(BenchmarkConfig)
    try:
        print(summary_table(benchmark(config)))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except CellsFailed as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    print(f"report: {config.out / 'report.html'}")
