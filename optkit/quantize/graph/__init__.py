"""The exported graph: where it is observed, for which engine, and how it becomes int8."""
