"""A sweep on Kubernetes: its workers are pods, and each runs one point after another.

    pip install "redistill-lab[dask]" dask-kubernetes
    python sweeps/cluster/kubernetes.py sweeps/strides.yaml --image registry/redistill --claim lab --pods 8

The cluster needs the Dask operator (`helm install --repo https://helm.dask.org --generate-name dask-kubernetes-operator`),
an image in which this kit is installed, and a volume claim that many pods may write (ReadWriteMany). Run it in a pod that
has that claim at the same path, and this repository in it: notebooks and results are read and written there. What it does
not know goes on to `redistill sweep`. A pod that is evicted costs its point an attempt. `--spec` shows what is asked of
the operator, and stops.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from dask_kubernetes.operator import KubeCluster, make_cluster_spec

from redistill_lib.cli import main as redistill


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="with this kit installed")
    parser.add_argument("--claim", required=True, help="the volume claim with this repository in it")
    parser.add_argument("--path", default=os.getcwd(), help="where pods mount it; left out, this folder")
    parser.add_argument("--pods", type=int, default=4, help="workers")
    parser.add_argument("--cpus", type=int, default=4, help="of each pod: the threads of a training")
    parser.add_argument("--memory", default="8Gi", help="of each pod")
    parser.add_argument("--spec", action="store_true", help="show the cluster's specification, and stop")
    given, rest = parser.parse_known_args()
    spec = specification(given)
    if given.spec:
        print(json.dumps(spec, indent=2))
        return 0
    with KubeCluster(custom_cluster_spec=spec) as cluster:
        return redistill(["sweep", *rest, "--scheduler", cluster.scheduler_address])


def specification(given: argparse.Namespace) -> dict[str, Any]:
    resources = {"limits": {"cpu": str(given.cpus), "memory": given.memory}}
    spec: dict[str, Any] = make_cluster_spec(
        name="redistill",
        image=given.image,
        n_workers=given.pods,
        resources=resources | {"requests": resources["limits"]},
        env={"OMP_NUM_THREADS": str(given.cpus)},
        worker_command=["dask", "worker", "--nthreads", "1"],
    )
    pod = spec["spec"]["worker"]["spec"]
    pod["volumes"] = [{"name": "lab", "persistentVolumeClaim": {"claimName": given.claim}}]
    container = pod["containers"][0]
    container |= {"volumeMounts": [{"name": "lab", "mountPath": given.path}], "workingDir": given.path}
    return spec


if __name__ == "__main__":
    sys.exit(main())
