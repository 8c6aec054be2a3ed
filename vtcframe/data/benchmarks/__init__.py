"""Published benchmarks: readers of their files and their scoring rules; `vtcframe/__init__.pyi` lists them."""
