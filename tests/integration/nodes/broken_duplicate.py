"""One node whose name is taken, and one that is fine."""

from vortex_worker.executor import AbstractExecutor


class Twice(AbstractExecutor):
    op_type = "Identity"

    def execute(self, inputs, params):
        return {}


class Beside(AbstractExecutor):
    """Loads although its neighbour doesn't."""

    op_type = "Beside"
    output_ports = ("value",)

    def execute(self, inputs, params):
        return {"value": "fine"}
