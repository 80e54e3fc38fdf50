"""A budget in milliseconds: blocks of the graph, their measured times, and the cut that fits."""
