"""From channel labels to a smaller model: what can be cut, what is chosen, and the cut itself."""
