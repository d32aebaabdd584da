"""A sweep on Slurm: its workers are batch jobs, and each runs one point after another.

    pip install "redistill-lab[dask]" dask-jobqueue
    python sweeps/cluster/slurm.py sweeps/strides.yaml --jobs 8 --cpus 4 --memory 8GB --walltime 08:00:00

Run it on a login node, in a folder that all nodes share; what it does not know goes on to `redistill sweep`. A job
that is killed, or ends by its time, costs its point an attempt. `--script` shows what is submitted, and stops.
"""

from __future__ import annotations

import argparse
import sys

from dask_jobqueue import SLURMCluster

from redistill_lib.cli import main as redistill


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4, help="workers, a batch job each")
    parser.add_argument("--cpus", type=int, default=4, help="of each job: the threads of a training")
    parser.add_argument("--memory", default="8GB", help="of each job")
    parser.add_argument("--walltime", default="08:00:00", help="of each job")
    parser.add_argument("--partition", help="left out, the usual one")
    parser.add_argument("--gpus", type=int, default=0, help="of each job")
    parser.add_argument("--script", action="store_true", help="show the batch script, and stop")
    given, rest = parser.parse_known_args()
    cluster = SLURMCluster(
        cores=1,  # points at a time
        processes=1,
        job_cpu=given.cpus,
        memory=given.memory,
        walltime=given.walltime,
        queue=given.partition,
        job_extra_directives=[f"--gpus={given.gpus}"] * bool(given.gpus),
        job_script_prologue=[f"export OMP_NUM_THREADS={given.cpus}"],
        log_directory="runs/slurm",
    )
    with cluster:
        if given.script:
            print(cluster.job_script())
            return 0
        cluster.scale(jobs=given.jobs)
        return redistill(["sweep", *rest, "--scheduler", cluster.scheduler_address])


if __name__ == "__main__":
    sys.exit(main())
