"""Deformable attention in PyTorch that recomputes the sampled values in the backward pass.

mmcv's PyTorch code keeps several copies of all sampled values, ``num_levels * num_points`` vectors
for each query. Here some queries are sampled at a time, and again in the backward pass.
"""
from typing import Iterator, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmcv.ops import multi_scale_deform_attn as mmcv_module
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import warn_once
from .attention import replace_attention

SAMPLES_AT_ONCE = 2**20  # values sampled at a time: 4 MiB in float32, which fit into a cache


class MemorySavingAttention(mmcv_module.MultiScaleDeformableAttention):
    """mmcv's ``MultiScaleDeformableAttention`` with :func:`deformable_attention`, batch first.

    On a GPU mmcv's compiled op is used if it is installed. Exported and compiled models use mmcv's
    PyTorch code.
    """

    def forward(self, query: Tensor, key: None = None, value: Optional[Tensor] = None,
                identity: Optional[Tensor] = None, query_pos: Optional[Tensor] = None,
                key_padding_mask: Optional[Tensor] = None,
                reference_points: Optional[Tensor] = None,
                spatial_shapes: Optional[Tensor] = None, **kwargs) -> Tensor:
        """Attend; arguments and result as for the parent."""
        if (query.is_cuda and mmcv_module.IS_CUDA_AVAILABLE or torch.jit.is_tracing() or
                is_compiling()):
            return super().forward(
                query, key, value, identity, query_pos, key_padding_mask, reference_points,
                spatial_shapes, **kwargs)
        identity = query if identity is None else identity
        value = self.value_proj(query if value is None else value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.)
        if query_pos is not None:
            query = query + query_pos
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (self.num_levels, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (*weights.shape[2:], 2))
        points = reference_points[:, :, None, :, None]  # (x, y) or cxcywh
        if points.size(-1) == 2:
            offsets = offsets / spatial_shapes.flip(-1)[:, None]
        else:
            offsets = offsets / self.num_points * points[..., 2:] * .5
        out = deformable_attention(value.unflatten(-1, (self.num_heads, -1)), spatial_shapes,
                                   points[..., :2] + offsets, weights)
        return self.dropout(self.output_proj(out)) + identity


def save_memory(model: nn.Module) -> None:
    """Replace mmcv's deformable attention inside a model, in place; parameters stay the same."""
    for layer in list(model.modules()):
        for name in ('self_attn', 'cross_attn'):
            if type(getattr(layer, name, None)) is mmcv_module.MultiScaleDeformableAttention:
                with torch.device('meta'):  # initialize without random numbers
                    replace_attention(layer, name, MemorySavingAttention)


def is_compiling() -> bool:
    """Return whether ``torch.compile`` traces the caller."""
    if hasattr(torch.compiler, 'is_compiling'):  # since torch 2.3
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()


def deformable_attention(value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor,
                         attention_weights: Tensor) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, Section 4.1), as mmcv computes it.

    Args:
        value (Tensor): Shape (bs, num_keys, num_heads, dim).
        value_spatial_shapes (Tensor): Height and width of each level, shape (num_levels, 2).
        sampling_locations (Tensor): Normalized (x, y), shape
            (bs, num_queries, num_heads, num_levels, num_points, 2).
        attention_weights (Tensor): Shape (bs, num_queries, num_heads, num_levels, num_points).

    Returns:
        Tensor: Shape (bs, num_queries, num_heads * dim).
    """
    if value.is_cuda:
        warn_once('Deformable attention runs as slower PyTorch code: install the full mmcv, built '
                  'for your torch and CUDA, for its compiled op.')
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    with torch.autocast(value.device.type, enabled=False):
        return _DeformableAttention.apply(
            value.to(dtype), sampling_locations.to(dtype), attention_weights.to(dtype),
            torch.as_tensor(value_spatial_shapes).tolist())


class _DeformableAttention(torch.autograd.Function):
    """Arguments as for :func:`deformable_attention`, of one dtype; ``shapes`` as a list."""

    @staticmethod
    def forward(ctx, value: Tensor, locations: Tensor, weights: Tensor,
                shapes: Sequence[Sequence[int]]) -> Tensor:
        bs, num_queries, num_heads = locations.shape[:3]
        out = value.new_zeros(bs * num_heads, value.size(-1), num_queries)
        for level, features in enumerate(feature_maps(value, shapes)):
            for rows in query_chunks(features, weights):
                out[..., rows] += attend(features, *of_level(locations, weights, level, rows))
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        return out.view(bs, -1, num_queries).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        value, locations, weights = ctx.saved_tensors
        grad = grad.transpose(1, 2).reshape(-1, value.size(-1), grad.size(1))
        grads = torch.empty_like(locations), torch.empty_like(weights)
        grad_maps = []
        for level, features in enumerate(feature_maps(value, ctx.shapes)):
            grad_maps.append(torch.zeros_like(features))
            for rows in query_chunks(features, weights):
                inputs = [x.detach().requires_grad_() for x in
                          (features, *of_level(locations, weights, level, rows))]
                with torch.enable_grad():
                    out = attend(*inputs)
                grad_map, *grad_rows = torch.autograd.grad(out, inputs, grad[..., rows])
                grad_maps[-1] += grad_map
                for whole, part in zip(grads, grad_rows):
                    part = part.view(len(value), -1, *part.shape[1:]).transpose(1, 2)
                    whole[:, rows, :, level] = part
        grad_value = torch.cat([x.flatten(2) for x in grad_maps], 2)  # (bs * heads, dim, keys)
        grad_value = grad_value.view(len(value), -1, *grad_value.shape[1:]).permute(0, 3, 1, 2)
        return grad_value, *grads, None


def feature_maps(value: Tensor, shapes: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Yield each level's values as maps, shape (bs * num_heads, dim, height, width)."""
    for (height, width), level in zip(shapes, value.split([h * w for h, w in shapes], 1)):
        yield level.permute(0, 2, 3, 1).reshape(-1, value.size(-1), height, width)


def query_chunks(features: Tensor, weights: Tensor) -> Iterator[slice]:
    """Yield slices of queries whose samples fit into the cache, or into the level's size."""
    maps, dim = features.shape[:2]
    rows = max(1, max(SAMPLES_AT_ONCE, features.numel()) // (maps * dim * weights.size(-1)))
    for row in range(0, weights.size(1), rows):
        yield slice(row, row + rows)


def of_level(locations: Tensor, weights: Tensor, level: int,
             rows: slice) -> Tuple[Tensor, Tensor]:
    """Select a level's ``rows``, each of shape (bs * num_heads, rows, num_points, ...)."""
    return tuple(x[:, rows, :, level].transpose(1, 2).flatten(0, 1) for x in (locations, weights))


def attend(features: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Compute the weighted sum of samples of a level, shape (n, dim, rows).

    Args:
        features (Tensor): Shape (n, dim, height, width).
        locations (Tensor): Normalized (x, y), shape (n, rows, num_points, 2).
        weights (Tensor): Shape (n, rows, num_points).
    """
    sampled = F.grid_sample(features, 2 * locations - 1, align_corners=False)
    return (sampled * weights[:, None]).sum(-1)
