"""The laws, each of them a function."""
