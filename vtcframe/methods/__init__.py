"""Published compression methods and baselines, one paper per module; `vtcframe/__init__.pyi` lists the classes."""
