"""Reference candidates in Python, each the whole operator by another way. Mutants are made of this file."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def separate(
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps, *, stride, padding, dilation, groups
):
    """Compute the three operators one after the other."""
    convolved = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    mean, variance = running_mean[:, None, None], running_var[:, None, None]
    normalised = (convolved - mean) / torch.sqrt(variance + eps)
    return (normalised * gamma[:, None, None] + beta[:, None, None]) * scaling_factor


def folded(
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps, *, stride, padding, dilation, groups
):
    """Fold BatchNorm and scale into the weights and the bias of one convolution."""
    a = scaling_factor * gamma / torch.sqrt(running_var + eps)
    b = scaling_factor * beta - a * running_mean
    if bias is not None:
        b = b + a * bias
    return F.conv2d(x, weight * a[:, None, None, None], b, stride, padding, dilation, groups)


def product(
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps, *, stride, padding, dilation, groups
):
    """Multiply matrices of unfolded windows, group by group."""
    rows, columns = weight.shape[2:]
    height = (x.shape[2] + 2 * padding[0] - dilation[0] * (rows - 1) - 1) // stride[0] + 1
    width = (x.shape[3] + 2 * padding[1] - dilation[1] * (columns - 1) - 1) // stride[1] + 1
    windows = F.unfold(x, (rows, columns), dilation, padding, stride)
    windows = windows.reshape(len(x), groups, windows.shape[1] // groups, height * width)
    filters = weight.reshape(groups, len(weight) // groups, -1)
    sums = (filters @ windows).reshape(len(x), len(weight), height, width)
    if bias is not None:
        sums = sums + bias[:, None, None]
    a = gamma * scaling_factor / torch.sqrt(running_var + eps)
    return (sums - running_mean[:, None, None]) * a[:, None, None] + (beta * scaling_factor)[:, None, None]


def shifted(
    x, weight, bias, running_mean, running_var, gamma, beta, scaling_factor, eps, *, stride, padding, dilation, groups
):
    """Add up a shifted x for every tap of the window."""
    rows, columns = weight.shape[2:]
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height = (padded.shape[2] - dilation[0] * (rows - 1) - 1) // stride[0] + 1
    width = (padded.shape[3] - dilation[1] * (columns - 1) - 1) // stride[1] + 1
    sums = torch.zeros(len(x), len(weight), height, width)
    if bias is not None:
        sums += bias[:, None, None]
    for i in range(rows):
        for j in range(columns):
            top, left = i * dilation[0], j * dilation[1]
            bottom, right = top + (height - 1) * stride[0] + 1, left + (width - 1) * stride[1] + 1
            taken = padded[:, :, top : bottom : stride[0], left : right : stride[1]]
            sums += F.conv2d(taken, weight[:, :, i : i + 1, j : j + 1], groups=groups)
    normalised = (sums - running_mean[:, None, None]) * torch.rsqrt(running_var + eps)[:, None, None]
    return scaling_factor * (gamma[:, None, None] * normalised + beta[:, None, None])
