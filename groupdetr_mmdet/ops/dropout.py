"""Cheaper dropout: in FFNs, and in attention on the CPU, for which PyTorch has no fused kernel."""
import functools
from typing import Iterator, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import Dropout
from mmcv.cnn.bricks.transformer import FFN
from mmengine.logging import print_log
from torch import Tensor, nn

CHUNK = 2**20  # attention weights computed at a time: 4 MiB in float32, which fit into a cache


@functools.cache
def announce_dropout_attention() -> None:
    """Log once that attention is computed by this module."""
    print_log('Attention dropout has no fused kernel on the CPU; the attention map is computed '
              'part by part. attn_drop=0. in model.decoder.layer_cfg makes training there faster.',
              logger='current')


@torch.compiler.disable
def dropout_attention(query: Tensor, key: Tensor, value: Tensor, keep_mask: Optional[Tensor],
                      dropout: float) -> Tensor:
    """Compute ``dropout(softmax(q k^T / sqrt(d))) v``, ``CHUNK`` attention weights at a time.

    The backward pass recomputes the weights, and needs one byte of each: whether it was kept.

    Args:
        query, key, value (Tensor): Shape (bs, num_heads, num_rows, dim).
        keep_mask (Tensor, optional): True where a query attends to a key.
        dropout (float): Probability of dropping a weight, rounded to a multiple of 2**-16.
    """
    announce_dropout_attention()
    bs, num_heads = query.shape[:2]
    if keep_mask is not None:
        keep_mask = keep_mask.expand(bs, num_heads, *keep_mask.shape[-2:]).flatten(0, 1)
    query, key, value = (x.flatten(0, 1) for x in (query * query.size(-1)**-.5, key, value))
    out = _DropoutAttention.apply(query, key, value, keep_mask, dropout)
    return out.unflatten(0, (bs, num_heads))


@torch.compiler.disable
def draw_kept(shape: Tuple[int, ...], dropout: float) -> Tensor:
    """Draw bytes of a shape, 1 (kept) with probability ``1 - dropout``, else 0.

    Each byte takes 16 random bits of NumPy, seeded by PyTorch's default generator:
    ``torch.bernoulli`` takes ten times longer, more than the attention itself. Bytes multiply
    faster than booleans.
    """
    count = torch.Size(shape).numel()
    seed = torch.randint(2**63 - 1, ()).item()
    words = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.uint16)[:count]
    return torch.from_numpy((words >= round(dropout * 2**16)).view(np.uint8)).view(shape)


def chunks(num_heads: int, num_queries: int, num_keys: int) -> Iterator[Tuple[slice, slice]]:
    """Yield slices of heads and of queries with at most ``CHUNK`` attention weights."""
    heads = max(1, CHUNK // (num_queries * num_keys))
    heads = -(-num_heads // -(-num_heads // heads))  # slices of equal size, for the threads
    rows = num_queries if heads > 1 else max(1, CHUNK // num_keys)
    for head in range(0, num_heads, heads):
        for row in range(0, num_queries, rows):
            yield slice(head, head + heads), slice(row, row + rows)


def softmax_scores(query: Tensor, key: Tensor, keep_mask: Optional[Tensor], heads: slice,
                   rows: slice) -> Tensor:
    """Compute the attention weights of one chunk in float32, before dropout."""
    scores = torch.bmm(query[heads, rows], key[heads].transpose(1, 2)).float()
    if keep_mask is not None:
        mask = keep_mask[heads]
        scores.masked_fill_(~(mask if mask.size(1) == 1 else mask[:, rows]), float('-inf'))
    return scores.softmax(-1)


class _DropoutAttention(torch.autograd.Function):
    """Arguments as for :func:`dropout_attention`, of shape (bs * num_heads, num_rows, dim)."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, keep_mask: Optional[Tensor],
                dropout: float) -> Tensor:
        out = query.new_empty(*query.shape[:2], value.size(-1))
        all_kept = []
        for heads, rows in chunks(query.size(0), query.size(1), key.size(1)):
            kept = draw_kept((*query[heads, rows].shape[:2], key.size(1)), dropout)
            all_kept.append(kept)
            weights = softmax_scores(query, key, keep_mask, heads, rows).mul_(kept)
            out[heads, rows] = torch.bmm(weights.to(value.dtype), value[heads])
        out.mul_(1 / (1 - dropout))
        ctx.save_for_backward(query, key, value, keep_mask, out, *all_kept)
        ctx.dropout = dropout
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        query, key, value, keep_mask, out, *all_kept = ctx.saved_tensors
        mean = (grad * out).sum(-1, keepdim=True)  # weighted mean of the weights' gradients
        grad = grad * (1 / (1 - ctx.dropout))
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        slices = chunks(query.size(0), query.size(1), key.size(1))
        for (heads, rows), kept in zip(slices, all_kept):
            weights = softmax_scores(query, key, keep_mask, heads, rows)
            grad_rows = grad[heads, rows]
            dropped = weights * kept
            scores = torch.bmm(grad_rows, value[heads].transpose(1, 2)).mul(dropped)
            scores = scores.sub_(weights.mul_(mean[heads, rows])).to(query.dtype)
            grad_value[heads] += torch.bmm(dropped.to(value.dtype).transpose(1, 2), grad_rows)
            grad_query[heads, rows] = torch.bmm(scores, key[heads])
            grad_key[heads] += torch.bmm(scores.transpose(1, 2), query[heads, rows])
        return grad_query, grad_key, grad_value, None, None


def relu_dropout(x: Tensor, dropout: float) -> Tensor:
    """Compute ``dropout(relu(x))`` of any shape, and keep the result alone for the backward pass.

    A result is above zero exactly where ``x`` was positive and kept. PyTorch keeps the results of
    ReLU and dropout and the mask, the largest tensors of a decoder layer after the attention
    weights.
    """
    return _ReLUDropout.apply(x, dropout)


class _ReLUDropout(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, dropout: float) -> Tensor:
        out = x.relu()
        if dropout and x.device.type == 'cpu':
            out.mul_(draw_kept(x.shape, dropout)).mul_(1 / (1 - dropout))
        elif dropout:
            out = F.dropout(out, dropout)
        ctx.save_for_backward(out)
        ctx.dropout = dropout
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        out, = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, out, 0)  # much faster than a mask
        return grad.mul_(1 / (1 - ctx.dropout)), None


class CheapDropout(nn.Dropout):
    """``nn.Dropout`` by :func:`draw_kept` on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``dropout(x)``."""
        if not self.training or self.p in (0, 1) or x.device.type != 'cpu':
            return super().forward(x)
        return x * draw_kept(x.shape, self.p) * (1 / (1 - self.p))


class FusedBlock(nn.Sequential):
    """The linear layer, ReLU and dropout of an FFN, by :func:`relu_dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the hidden layer, ``(..., dim) -> (..., feedforward_channels)``."""
        linear, _, dropout = self
        return relu_dropout(linear(x), dropout.p if self.training else 0.)


def fuse_ffn(ffn: FFN) -> None:
    """Let an FFN with ReLU use :func:`relu_dropout`, in place; results stay the same."""
    for i, block in enumerate(ffn.layers):
        if isinstance(block, nn.Sequential) and isinstance(block[1], nn.ReLU):
            ffn.layers[i] = FusedBlock(*block)


def replace_dropout(layer: nn.Module) -> None:
    """Replace the dropouts inside a layer by :class:`CheapDropout`, in place."""
    for parent in list(layer.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.Dropout, Dropout):
                setattr(parent, name, CheapDropout(child.p))
