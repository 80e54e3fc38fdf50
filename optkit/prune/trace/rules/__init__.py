"""One rule for each kind of operator: which channels of its output depend on which of its inputs."""
