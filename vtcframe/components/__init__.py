"""Scorers, ensemblers, allocators, selectors and mergers that methods are composed of."""
