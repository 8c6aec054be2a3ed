"""Configuration: short component names in YAML, the command-line parser, and vtcframe.yaml."""
