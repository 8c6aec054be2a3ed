"""The vocabulary: layouts, evidence, needs, budgets, prunings, the verbs, and the pipeline made of them."""
