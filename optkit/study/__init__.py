"""Ablations of one recipe: the contribution of each technique in its chain, and the effect of their order."""
