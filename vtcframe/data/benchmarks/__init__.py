"""Published benchmarks: how their files are read and their answers scored; `vtcframe/__init__.pyi` lists them."""
