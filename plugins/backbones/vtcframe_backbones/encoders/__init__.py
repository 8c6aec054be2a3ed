"""Vision transformers of timm and open_clip as encoders of their own, without a language model."""
