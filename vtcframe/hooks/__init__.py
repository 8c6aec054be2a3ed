"""The only package that touches a running model. Every export is a context manager that restores what it changed."""
