"""A small service around a fabric, to start from: workflows in by HTTP, results in a folder.

    python service.py [--host 127.0.0.1] [--port 8188] [--workers 2] [--custom-nodes DIR] [--output DIR]

``POST /run``      a workflow in ComfyUI's API format; answers with the files that were made, or with each problem
``GET /healthz``   200 while a worker is there that the kernel confirms to be locked down, else 503
``GET /metrics``   Prometheus, where ``vortex-worker[metrics]`` is installed

It asks nobody who they are: keep it on the loopback address, behind something that does. A workflow may name pictures
for the service to read. Logs are one JSON object a line, on stderr. SIGTERM lets what runs end, and then the service.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import vortex_worker as vw
from vortex_worker.errors import JobError, VortexError, WorkflowError

LARGEST = 16 << 20  # 16 MiB of workflow
log = logging.getLogger("service")


class Service(ThreadingHTTPServer):
    """The server, with the fabric that all its threads share."""

    daemon_threads = False  # whoever is being answered is answered before we end

    def __init__(self, address: tuple[str, int], fabric: vw.Fabric, output: str) -> None:
        super().__init__(address, Handler)
        self.fabric = fabric
        self.output = output


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        if self.path != "/run":
            return self.answer(404, {"error": "there is POST /run, GET /healthz and GET /metrics"})
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            return self.answer(411, {"error": "Content-Length is missing, or no number"})
        if not 0 < size <= LARGEST:
            return self.answer(413, {"error": f"a workflow is 1 to {LARGEST} bytes, not {size}"})
        try:
            workflow = json.loads(self.rfile.read(size))
        except ValueError as error:
            return self.answer(400, {"error": f"not JSON: {error}"})
        if not isinstance(workflow, dict):
            return self.answer(400, {"error": "a workflow is a JSON object: node by id"})
        try:
            result = self.server.fabric.run_workflow(workflow, output_dir=self.server.output)
        except WorkflowError as error:
            return self.answer(400, {"error": str(error), "problems": error.problems})
        except JobError as error:
            return self.answer(500, {"error": str(error), "code": error.code})
        except VortexError as error:
            return self.answer(503, {"error": str(error)})
        return self.answer(200, {"files": result.files, "seconds": round(result.seconds, 3)})

    def do_GET(self) -> None:
        if self.path == "/healthz":
            locked = [worker["id"] for worker in self.server.fabric.workers() if worker["sandbox"]["enforced"]]
            return self.answer(200 if locked else 503, {"workers": locked})
        if self.path == "/metrics" and "prometheus_client" in sys.modules:
            return self.write(200, sys.modules["prometheus_client"].generate_latest(), "text/plain; version=0.0.4")
        return self.answer(404, {"error": "not here"})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.write(status, json.dumps(body).encode() + b"\n", "application/json")

    def write(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form: str, *values: Any) -> None:
        log.info(form, *values)


class JsonLines(logging.Formatter):
    """A log record as one JSON object. What workers write comes as logger ``vortex_worker.worker``."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record), "level": record.levelname.lower(),
            "logger": record.name, "event": record.getMessage(),
        }  # fmt: skip
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def tell_systemd(state: str) -> None:
    """sd_notify(3), where there is a systemd that listens."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            sock.send(state.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="A service around a fabric.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--custom-nodes", action="append", default=[])
    parser.add_argument("--output", default="out")
    options = parser.parse_args()
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    with vw.Fabric(options.workers, custom_nodes=options.custom_nodes) as fabric:
        with contextlib.suppress(ImportError):
            from vortex_worker.observe import metrics

            metrics.instrument(fabric)
        fabric.wait_ready()
        with Service((options.host, options.port), fabric, options.output) as server:
            # shutdown() waits for serve_forever(), which is what the signal interrupts: from another thread
            signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
            log.info("ready on %s:%d", *server.server_address[:2])
            tell_systemd("READY=1")
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
            tell_systemd("STOPPING=1")


if __name__ == "__main__":
    main()
