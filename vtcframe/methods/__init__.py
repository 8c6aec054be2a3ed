"""Published methods and baselines, one paper in each module; `vtcframe/__init__.pyi` lists them."""
