"""DINOv2 features through torch-fidelity, by a stand-in for the published network."""

import numpy as np
import pytest
import tiny
import torch

from metrics import encoding
from utils import UserError

# A network of one map; like the real one it takes normalised images (B, 3, 224, 224).
CODE = """
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(3, 1024)

    def forward(self, x):
        assert x.shape[2:] == (224, 224)
        return self.map(x.mean((2, 3)))

def dinov2_vitl14(pretrained=True):
    assert not pretrained
    return Network()
"""


def test_features(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    config = tiny.config(tmp_path)
    config.eval.features = "dinov2"
    config.eval.dinov2_weights = str(tmp_path / "x.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="facebookresearch_dinov2_main"):
        encoding.open_extractor(config)
    code = tmp_path / "facebookresearch_dinov2_main"
    code.mkdir()
    (code / "hubconf.py").write_text(CODE)
    with pytest.raises(UserError, match=r"x\.pth"):
        encoding.open_extractor(config)
    weight, bias = torch.randn(1024, 3), torch.randn(1024)
    torch.save({"map.weight": weight, "map.bias": bias}, tmp_path / "x.pth")
    extractor = encoding.open_extractor(config)
    assert extractor.name.startswith("dinov2-vit-l-14-")
    grey = np.arange(0, 250, 10, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 1), np.uint8)
    pool, logits = extractor(grey)
    assert logits.shape == (25, 0)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's
    expected = (grey[:, 0, 0] / 255 - mean) / std @ weight.numpy().T + bias.numpy()
    np.testing.assert_allclose(pool, expected, rtol=1e-3, atol=1e-3)
    config.eval.dinov2_weights = None
    with pytest.raises(UserError, match=r"eval\.dinov2_weights"):
        encoding.open_extractor(config)
