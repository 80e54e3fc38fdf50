"""Traffic sent to a server at its own times, and its latencies beside those that were predicted."""

from optkit.serving.loadtest.lines import LEDGER, append, row, table
from optkit.serving.loadtest.measuring import Measured, loadtest
from optkit.serving.loadtest.predicting import predict
from optkit.serving.loadtest.sending import TIMEOUT_S, Request, Sent, body_of, check_url, drawn

__all__ = [
    "LEDGER", "TIMEOUT_S", "Measured", "Request", "Sent", "append", "body_of", "check_url", "drawn", "loadtest",
    "predict", "row", "table",
]  # fmt: skip
