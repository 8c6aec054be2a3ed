"""Adapters: one class for each family of models. They lay out prompts, encode pictures and splice pruned features."""
