"""Tiny models of every family, their samples, and evidence made by hand."""
