"""Adapters: what knows a family of models. They lay out prompts, encode pictures, and splice pruned features back."""
