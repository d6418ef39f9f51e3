"""Every switch of a run: the fields, their checks, and the name that they give a run."""
