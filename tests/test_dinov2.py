"""DINOv2 features, by a small stand-in: against torchvision's transformer."""

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torchvision.models.vision_transformer import VisionTransformer as Torchvisions

from evaluation import fid_and_is
from metrics import dinov2, encoding, frechet
from utils import UserError

SMALL = dinov2.Architecture(width=32, depth=2, heads=4, patch=14, grid=3)


def randomised(network):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def torchvisions(ours):
    """The same network as torchvision has it, without LayerScale: γ goes into the weights."""
    theirs = Torchvisions(
        image_size=SMALL.grid * SMALL.patch,
        patch_size=SMALL.patch,
        num_layers=SMALL.depth,
        num_heads=SMALL.heads,
        hidden_dim=SMALL.width,
        mlp_dim=4 * SMALL.width,
    )
    theirs.heads = torch.nn.Identity()
    state = {
        "class_token": ours.cls_token,
        "encoder.pos_embedding": ours.pos_embed,
        "conv_proj.weight": ours.patch_embed.proj.weight,
        "conv_proj.bias": ours.patch_embed.proj.bias,
        "encoder.ln.weight": ours.norm.weight,
        "encoder.ln.bias": ours.norm.bias,
    }
    for number, block in enumerate(ours.blocks):
        own = f"encoder.layers.encoder_layer_{number}"
        state[f"{own}.self_attention.in_proj_weight"] = block.attn.qkv.weight
        state[f"{own}.self_attention.in_proj_bias"] = block.attn.qkv.bias
        for kind in ("weight", "bias"):
            gamma = [scale.gamma for scale in (block.ls1, block.ls2)]
            if kind == "weight":
                gamma = [each[:, None] for each in gamma]
            state[f"{own}.ln_1.{kind}"] = getattr(block.norm1, kind)
            state[f"{own}.ln_2.{kind}"] = getattr(block.norm2, kind)
            state[f"{own}.self_attention.out_proj.{kind}"] = gamma[0] * getattr(
                block.attn.proj, kind
            )
            state[f"{own}.mlp.0.{kind}"] = getattr(block.mlp.fc1, kind)
            state[f"{own}.mlp.3.{kind}"] = gamma[1] * getattr(block.mlp.fc2, kind)
    theirs.load_state_dict(state)
    return theirs.eval()


@torch.no_grad()
def test_the_network_is_torchvisions():
    ours = randomised(dinov2.VisionTransformer(SMALL)).eval()
    x = torch.randn(3, 3, SMALL.grid * SMALL.patch, SMALL.grid * SMALL.patch)
    torch.testing.assert_close(ours(x), torchvisions(ours)(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_positions_are_interpolated():
    """What is equal everywhere stays so, and a slope stays one; the class token keeps its own."""
    network = dinov2.VisionTransformer(dinov2.Architecture(width=2, depth=1, heads=1, grid=37))
    slope = torch.arange(37.0).repeat_interleave(37)
    patches = torch.stack([slope, torch.ones(37**2)], dim=1)
    network.pos_embed.copy_(torch.cat([torch.full((1, 2), 7.0), patches])[None])
    positions = network.positions(16, 16)
    assert positions.shape == (1, 257, 2)
    assert positions[0, 0].tolist() == [7, 7]
    torch.testing.assert_close(positions[0, 1:, 1], torch.ones(256))
    inner = positions[0, 1:, 0].unflatten(0, (16, 16))[2:-2]
    assert inner.diff(dim=0).mean().item() == pytest.approx(37 / 16.1, rel=0.02)


def test_layout_of_the_published_file():
    """Counts of the paper's ViT-L/14: 304 million parameters in 24 blocks."""
    with torch.device("meta"):
        state = dinov2.VisionTransformer(dinov2.Architecture()).state_dict()
    assert state["pos_embed"].shape == (1, 1370, 1024)
    assert state["patch_embed.proj.weight"].shape == (1024, 3, 14, 14)
    assert state["blocks.23.attn.qkv.weight"].shape == (3072, 1024)
    assert state["blocks.23.mlp.fc2.bias"].shape == state["blocks.0.ls2.gamma"].shape == (1024,)
    assert len(state) == 24 * 14 + 7
    assert sum(tensor.numel() for tensor in state.values()) == 304_368_640


@pytest.mark.parametrize("size", [(32, 32), (300, 260)])
def test_resizing_is_bicubic(size):
    """Of colours that overshoot nowhere: what PIL clips depends on the order of its passes."""
    image = np.random.default_rng(0).integers(100, 150, (1, *size, 3), dtype=np.uint8)
    x = torch.from_numpy(image).permute(0, 3, 1, 2).float()
    theirs = F.interpolate(x, (224, 224), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    ours = dinov2.resized(image)
    assert ours.dtype == np.uint8
    assert np.abs(ours - theirs.numpy()).max() <= 1.5  # it rounds after each pass


def test_features(tmp_path, monkeypatch):
    monkeypatch.setattr(dinov2.DINOv2Features, "architecture", SMALL)
    config = tiny.config(tmp_path)
    config.eval.features = "dinov2"
    with pytest.raises(UserError, match="dinov2_vitl14_pretrain"):
        encoding.open_extractor(config)
    config.eval.dinov2_weights = str(tmp_path / "x.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not hold DINOv2's ViT-L/14"):
        encoding.open_extractor(config)
    network = randomised(dinov2.VisionTransformer(SMALL))
    torch.save(network.state_dict(), tmp_path / "x.pth")
    extractor = encoding.open_extractor(config)
    assert extractor.name.startswith("dinov2-vitl14-")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    pool, logits = extractor(images)
    assert pool.shape == (40, 32)
    assert logits.shape == (40, 0)
    x = torch.from_numpy(dinov2.resized(images.repeat(3, axis=-1))).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(dinov2.MEAN)[:, None, None]) / torch.tensor(dinov2.STD)[:, None, None]
    with torch.no_grad():
        np.testing.assert_allclose(pool, network.eval()(x).numpy(), rtol=1e-4, atol=1e-4)
    values = fid_and_is(pool[:20], pool[20:], logits[20:])
    assert values == {"fid": pytest.approx(frechet.frechet_distance(pool[:20], pool[20:]))}
