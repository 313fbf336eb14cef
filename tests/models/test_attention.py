"""Attention of packed groups."""

import torch
import torch.nn.functional as F

from models.attention import TreeAttention, grouped

KERNEL = F.scaled_dot_product_attention


def positions_before_heads(*args, **kwargs):
    """The same values, in memory as CUDA's memory-efficient kernel lays them: (B, M, H, K)."""
    return KERNEL(*args, **kwargs).transpose(1, 2).contiguous().transpose(1, 2)


def test_attention_takes_whatever_memory_layout_a_kernel_returns(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(7, 4, 8, generator=generator)
    key, value = torch.randn(2, 7, 2, 8, generator=generator)
    mask = torch.zeros(7, 7).masked_fill_(~torch.ones(7, 7).tril().bool(), -torch.inf).repeat(2, 1)
    expected = grouped(query, key, value, mask)
    tree = TreeAttention([[3, 2, 2]])(0, query, key, value)
    monkeypatch.setattr(F, "scaled_dot_product_attention", positions_before_heads)
    assert torch.equal(grouped(query, key, value, mask), expected)
    assert torch.equal(TreeAttention([[3, 2, 2]])(0, query, key, value), tree)
