"""Language modelling: texts to windows of tokens, protocols of perplexity, and multiple choice."""
