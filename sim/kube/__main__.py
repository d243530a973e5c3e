"""`python -m sim.kube`: an API server with one node and its pods, for labs and benches.

Prints one line of JSON when it is ready: `{"url": ...}`. Ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
import sys

from sim.kube.server import ApiServer, a_node, a_pod
from sim.kube.store import ENI_CONFIGS, NODES, PODS


async def serve(arguments: argparse.Namespace) -> None:
    """Until a signal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for end in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(end, stop.set)
    tls = None
    if arguments.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(arguments.certificate)
    server = ApiServer(port=arguments.port, tls=tls)
    await server.store.create(NODES, "", a_node(arguments.node, max_pods=arguments.max_pods))
    for number in range(arguments.pods):
        await server.store.create(PODS, "default", a_pod(f"pod-{number}", arguments.node))
    for name, subnet in arguments.eni_config:
        await server.store.create(ENI_CONFIGS, "", {"metadata": {"name": name}, "spec": {"subnet": subnet}})
    await server.start()
    sys.stdout.write(json.dumps({"url": server.url}) + "\n")
    sys.stdout.flush()
    try:
        await stop.wait()
    finally:
        await server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="sim.kube", description="A simulated Kubernetes API server for one node.")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: any that is free)")
    parser.add_argument("--certificate", metavar="PEM", help="file with a certificate and its key: speak TLS")
    parser.add_argument("--node", required=True, help="name of the node")
    parser.add_argument("--max-pods", type=int, default=110, help="its capacity (default: 110)")
    parser.add_argument("--pods", type=int, default=0, help="bind pods default/pod-0, default/pod-1, ... to it")
    parser.add_argument(
        "--eni-config", nargs=2, action="append", default=[], metavar=("NAME", "SUBNET"), help="may be given again"
    )
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
