"""Samples, decoding, file formats, transforms, processor inputs and result rows."""
