"""Vision transformers of timm and open_clip as stand-alone encoders, without a language model."""
