"""Training-free visual token compression for multimodal language models.

Names are loaded when first used, so that the command line answers without importing torch; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
