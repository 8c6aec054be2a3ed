"""Tiny auxiliary encoders, saved as their libraries save them."""

import json

import timm
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

SIDE, PATCH, DEPTH, CONTEXT = 64, 16, 4, 12


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


VISION = {"image_size": SIDE, "patch_size": PATCH, "width": 32, "layers": DEPTH, "head_width": 8}


WORDS = {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}


LONG = "what is the small brown dog doing behind the old wooden house with a red roof in winter ?"


def shaken(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval()


def contiguous(model):
    return {name: weight.contiguous() for name, weight in model.state_dict().items()}


def saved_timm(folder, **options):
    """A tiny ViT of timm as `local-dir:` wants it; its name and the model."""
    options = {"img_size": SIDE, "embed_dim": 32, "depth": DEPTH, "num_heads": 4, "num_classes": 0} | options
    model = shaken(timm.create_model("vit_tiny_patch16_224", **options))
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": options,
        "pretrained_cfg": {"input_size": [3, SIDE, SIDE], "mean": MEAN, "std": STD, "num_classes": 0},
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(contiguous(model), folder / "model.safetensors")
    return f"timm:local-dir:{folder}", model


def saved_open_clip(folder, vision=VISION, model=None):
    model = model or shaken(CLIP(24, dict(vision), dict(WORDS)))
    folder.mkdir(exist_ok=True)
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": WORDS},
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(contiguous(model), folder / "open_clip_model.safetensors")
    return f"open_clip:local-dir:{folder}", model


def saved_clip(folder):
    vocabulary = {"<pad>": 0, "<s>": 1, "<?>": 2}
    for word in LONG.split():
        vocabulary.setdefault(word, len(vocabulary))
    vocabulary["</s>"] = len(vocabulary)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<?>"))
    tokenizer.pre_tokenizer = Whitespace()
    ends = [("<s>", 1), ("</s>", vocabulary["</s>"])]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<?>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = CLIPTextConfig(
        **sizes,
        vocab_size=len(vocabulary),
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=vocabulary["</s>"],
    )
    vision = CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=PATCH)
    model = shaken(CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)))
    model.save_pretrained(folder)
    return f"clip:{folder}", model


def pictures():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in ((64, 64), (90, 40), (33, 200))]
