"""Feature extraction by a timm or open_clip model under a pruner."""

import torch
from torch import Tensor, nn

from vtcframe.core.budget import Budget
from vtcframe.core.stages import Pruner, plan_for
from vtcframe.inference.session import encode_batch, prune_batch
from vtcframe_backbones.encoders.open_clip import OpenClip
from vtcframe_backbones.encoders.timm import Timm


@torch.no_grad()
def extract(
    model: nn.Module, pixels: Tensor, pruner: Pruner, tokens: int | None = None, ratio: float | None = None
) -> Tensor:
    """[P, 3, h, w] -> [P, D]: features of a timm or open_clip model whose last block gets only the tokens of `pruner`.

    A method with stages inside the encoder prunes there instead. `tokens` or `ratio` is the budget of each picture (see
    `Budget`); without either the pruner must be adaptive. ValueError for other models, and for methods that need a
    language model. Zero-shot classification with half of the patches:

        names = [f"a photo of a {name}" for name in classes]
        words = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(names), normalize=True)
        features = torch.nn.functional.normalize(extract(model, pixels, VtcCls(), ratio=0.5), dim=-1)
        answer = (features @ words.T).argmax(1)
    """
    kind = next((kind for kind in (Timm, OpenClip) if kind.matches(model)), None)
    if kind is None:
        raise ValueError(f"{type(model).__name__} is neither a model of timm nor of open_clip: use one of them")
    budget = None if tokens is None and ratio is None else Budget(tokens, ratio)
    plan = plan_for(pruner, budget)
    inputs = {"pixel_values": pixels}
    adapter = kind(model, rest=1 if plan.projector else None)
    arrangement = adapter.arrange(inputs)
    if plan.covers(arrangement.layout):
        return adapter.untouched(pixels)
    if plan.llm:
        raise ValueError(f"{type(model).__name__} has no language model: {plan} acts at {plan.llm[0].at}")
    encoded = encode_batch(adapter, plan, inputs, arrangement, plan.needs)
    return adapter.features(encoded.evidence, prune_batch(plan, encoded)[0])
