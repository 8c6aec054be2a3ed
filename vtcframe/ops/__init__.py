"""Pure tensor functions under the components."""
