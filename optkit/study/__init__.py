"""Many runs of one recipe: what each technique of its chain brings, and what their order does."""
