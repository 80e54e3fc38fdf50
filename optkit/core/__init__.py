"""The vocabulary: errors, records, ledger, statistics, and the protocols of stages, tasks and engines."""
