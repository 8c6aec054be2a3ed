"""`vtcframe report`: finished runs as one page, as Markdown, or as a model card."""
