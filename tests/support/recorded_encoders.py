"""Vision encoders with recorded weights."""

import timm
import torch

from support.recorded_cases import layout_of
from vtcframe.core.token_merging import EncoderEvidence
from vtcframe.hooks.encoder import EncoderStages
from vtcframe_backbones.encoders.timm import Timm

WHOLE, PART = {"atol": 1e-4, "rtol": 1e-4}, {"atol": 2e-5, "rtol": 2e-5}


def weights(tensors):
    return {name.removeprefix("in.w."): value for name, value in tensors.items() if name.startswith("in.w.")}


def vit(tensors, heads, **options):
    """A ViT of timm with the recorded weights, its patch embedding only where that was recorded."""
    own = weights(tensors)
    width, depth = own["norm1.weight" if "norm1.weight" in own else "blocks.0.norm1.weight"].shape[0], 1
    if "blocks.0.norm1.weight" in own:
        depth = 1 + max(int(name.split(".")[1]) for name in own if name.startswith("blocks."))
    else:
        own = {f"blocks.0.{name}": value for name, value in own.items()}
    ratio = own["blocks.0.mlp.fc1.weight"].shape[0] / width
    classes = own["head.weight"].shape[0] if "head.weight" in own else 0
    sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": ratio, "num_classes": classes}
    model = timm.models.VisionTransformer(**sizes, **options)
    assert not model.load_state_dict(own, strict=False).unexpected_keys
    return model.eval()


@torch.no_grad()
def through(model, method, x, classes=1):
    """Hidden states behind each block, [CLS] in front; what each stage left, by its block; the sizes."""
    blocks = [Timm(model, rest=None).vit.split(block) for block in model.blocks]
    inside = EncoderStages(blocks, classes, layout_of([(1, x.shape[1] - classes)] * len(x)), method.stages(None))
    behind, left, prune = [], {}, inside._prune
    inside._prune = lambda k, hidden: left.setdefault(k, prune(k, hidden))
    with inside:
        for block in model.blocks:
            behind.append(x := block(x))
    return behind, {k: pruned for k, (_, pruned) in left.items()}


def groups(left, views, n, classes=1):
    """[V, classes + n] after each block: the row that holds each token of the first, -1 = none."""
    held = torch.arange(n).repeat(views, 1)
    out = {}
    for k, pruned in left.items():
        held = torch.where(held < 0, -1, pruned.group.gather(1, held.clamp(min=0)))
        own = torch.arange(classes).expand(views, -1)
        out[k] = torch.cat([own, torch.where(held < 0, -1, held + classes)], 1)
    return out


def midway(x, found, classes, size=None):
    """Evidence of a block from tokens, [CLS] among them."""
    patches = x[:, classes:]
    own = None if size is None else size[:, classes:, 0]
    return EncoderEvidence(patches, layout_of([(1, patches.shape[1])] * len(x)), found, size=own, classes=classes)


def with_class(tokens, x, classes):
    return torch.cat([x[:, :classes], tokens], 1)
