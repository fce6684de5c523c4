"""Random streams: their keys, the states they give PyTorch's generators, and no two that agree."""

import itertools

import numpy as np
import pytest
import torch
from device_option import DEVICE

from samplers.noise import PerImageNoise
from utils import random_stream, seed_default_generators, stream_key


def test_keys_of_distinct_streams_differ():
    """Of every purpose, and of tuples that differ in a number or only in their length."""
    purposes = ["weights", "epoch", "training step", "dropout", "validation", "pictures"]
    purposes += ["division", "class", "nll", "asymmetry"]
    values = [0, 1, 2, 42, 2**32, 2**63 - 1]
    tuples = [
        (purpose, *numbers)
        for purpose in purposes
        for length in range(4)
        for numbers in itertools.product(values, repeat=length)
    ]
    keys = {stream_key(*entropy) for entropy in tuples}
    assert len(keys) == len({key % 2**64 for key in keys}) == len(set(tuples))
    assert stream_key("class", 1, 2) == stream_key("class", np.int64(1), 2)
    assert 2**120 < max(keys) < 2**128


# ---------------------------------------------------------------- PyTorch's default generators


def test_the_default_generator_goes_on_like_numpys_mt19937():
    """With 624 words of Philox as its state; more draws than it has words."""
    seed_default_generators("test", 3)
    words = random_stream("test", 3).bit_generator.random_raw(312).view(np.uint32)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    expected = twister.random_raw(2000) & (2**24 - 1)  # torch.rand takes the low 24 bits
    found = torch.rand(2000, device="cpu") * 2**24
    assert np.array_equal(found.numpy().astype(np.uint64), expected)


def test_equal_keys_alone_give_equal_draws():
    """Of the CPU and of the device that is tested, whatever was drawn before."""

    def draws(*stream):
        seed_default_generators(*stream)
        found = [draw(5, device=d) for d in ("cpu", DEVICE) for draw in (torch.rand, torch.randn)]
        return torch.cat([draw.cpu() for draw in found])

    first = draws("test", 1)
    torch.randn(7)  # leaves half a pair
    assert torch.equal(draws("test", 1), first)
    for other in (("test", 2), ("test", 1, 0), ("other", 1)):
        assert len(torch.cat([draws(*other), first]).unique()) > 35


@pytest.mark.parametrize("pair", [(13358, 39256), (12536, 39934)])
def test_images_whose_keys_agree_in_32_bits_differ(pair):
    """Of seed 42; PyTorch's CPU generator kept 32 bits of a seed."""
    a, b = PerImageNoise(DEVICE, pair, "image", 42).randn((2, 3, 32, 32))
    assert len(torch.stack([a, b]).unique()) > 6000
