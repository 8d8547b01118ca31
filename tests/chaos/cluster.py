"""A Ray cluster of two nodes on this machine, run as `python -m tests.chaos.cluster FOLDER`, until it is killed.

Writes the address to FOLDER/address, and starts the second node once FOLDER/second exists. As an operator's machinery
would, it starts the GCS again when that has died, and a new node in place of a second one whose raylet has died.
"""

import sys
import time
from pathlib import Path

from ray._private.node import Node
from ray.cluster_utils import Cluster

POLL_S = 0.1
NODE = {"num_cpus": 1, "include_dashboard": False}


def has_died(node: Node, kind: str) -> bool:
    return node.all_processes[kind][0].process.poll() is not None


def main() -> None:
    folder = Path(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    partial = folder / "address.partial"
    partial.write_text(cluster.address)
    partial.rename(folder / "address")
    second: Node | None = None
    while True:
        time.sleep(POLL_S)
        head = cluster.head_node
        if has_died(head, "gcs_server"):
            head.kill_gcs_server(check_alive=False)
            head.start_gcs_server()
        if second is not None and has_died(second, "raylet"):
            cluster.remove_node(second, allow_graceful=False)
            second = None
        if second is None and (folder / "second").exists():
            second = cluster.add_node(**NODE)


if __name__ == "__main__":
    main()
