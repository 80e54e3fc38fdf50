"""A sweep: a folder with a name that knows its jobs, their states and why, whichever process or host runs them."""
