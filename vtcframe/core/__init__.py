"""The core types: layouts, evidence, needs, budgets, kinds of components, stages, and the pipeline that joins them."""
