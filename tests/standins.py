"""Stand-ins for files that cannot be had here: names and shapes written from their descriptions.

EfficientViT's by the authors (ImageNet and mmdet 2); SPOS is listed in ``test_spos``. Values are
random.
"""

import argparse

import torch

from evit_mm.models import VARIANTS

BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var')
CLASSES = tuple(f'class {i}' for i in range(80))


class Listing(dict):
    """Shapes by name."""

    def norm(self, name, channels):
        self.update({f'{name}.{entry}': (channels,) for entry in BATCH_NORM})
        self[f'{name}.num_batches_tracked'] = ()

    def conv_bn(self, name, out_channels, in_channels, kernel, conv='c', norm='bn'):
        self[f'{name}.{conv}.weight'] = (out_channels, in_channels, kernel, kernel)
        self.norm(f'{name}.{norm}', out_channels)

    def layer(self, name, *shape, bias=None):
        self[f'{name}.weight'] = shape
        self[f'{name}.bias'] = (shape[0] if bias is None else bias,)

    def tensors(self, seed=0):
        """Return random values: finite, variances positive, counters and indices whole."""
        generator = torch.Generator().manual_seed(seed)
        state = {}
        for name, shape in self.items():
            if name.endswith('num_batches_tracked'):
                state[name] = torch.tensor(7)
            elif name.endswith('attention_bias_idxs'):
                state[name] = offsets(round(shape[0] ** 0.5))
            else:
                state[name] = torch.randn(shape, generator=generator) * 0.1
                if name.endswith('running_var'):
                    state[name] = state[name].abs() + 0.5
        return state


def offsets(side):
    """Return the authors' index buffer, numbered as offsets appear, as their code does."""
    points = [(y, x) for y in range(side) for x in range(side)]
    seen, indices = {}, []
    for y0, x0 in points:
        for y1, x1 in points:
            indices.append(seen.setdefault((abs(y0 - y1), abs(x0 - x1)), len(seen)))
    return torch.tensor(indices).view(side**2, side**2)


def efficientvit(arch='m4', windows=(7, 7, 4), num_classes=1000):
    """List the authors' names of a classifier, or of a backbone with ``num_classes=None``."""
    variant, names = VARIANTS[arch], Listing()
    dims = variant.embed_dims
    before = 3
    for index, part in zip((0, 2, 4, 6), (8, 4, 2, 1), strict=True):
        names.conv_bn(f'patch_embed.{index}', dims[0] // part, before, 3)
        before = dims[0] // part

    def ffn(name, dim):
        names.conv_bn(f'{name}.pw1', 2 * dim, dim, 1)
        names.conv_bn(f'{name}.pw2', dim, 2 * dim, 1)

    for stage, (dim, depth, heads) in enumerate(
        zip(dims, variant.depths, variant.num_heads, strict=True)
    ):
        first, stem = 0, f'blocks{stage + 1}'
        if stage:
            first, last = 3, dims[stage - 1]
            for index, width in ((0, last), (2, dim)):
                names.conv_bn(f'{stem}.{index}.0.m', width, 1, 3)
                ffn(f'{stem}.{index}.1.m', width)
            names.conv_bn(f'{stem}.1.conv1', 4 * last, last, 1)
            names.conv_bn(f'{stem}.1.conv2', 4 * last, 1, 3)
            names.layer(f'{stem}.1.se.fc1', last, 4 * last, 1, 1)
            names.layer(f'{stem}.1.se.fc2', 4 * last, last, 1, 1)
            names.conv_bn(f'{stem}.1.conv3', dim, 4 * last, 1)
        for block in range(first, first + depth):
            for half in (0, 1):
                names.conv_bn(f'{stem}.{block}.dw{half}.m', dim, 1, 3)
                ffn(f'{stem}.{block}.ffn{half}.m', dim)
            attention, width = f'{stem}.{block}.mixer.m.attn', dim // heads
            for head in range(heads):
                names.conv_bn(f'{attention}.qkvs.{head}', 32 + width, width, 1)
                names.conv_bn(f'{attention}.dws.{head}', 16, 1, variant.kernel_sizes[head])
            names.conv_bn(f'{attention}.proj.1', dim, dim, 1)
            tokens = windows[stage] ** 2
            names[f'{attention}.attention_biases'] = (heads, tokens)
            names[f'{attention}.attention_bias_idxs'] = (tokens, tokens)
    if num_classes:
        names.norm('head.bn', dims[-1])
        names.layer('head.l', num_classes, dims[-1])
    return names


def imagenet_file(arch='m4'):
    """Return what the authors' ImageNet file holds, with their command line beside it."""
    return {
        'model': efficientvit(arch).tensors(),
        'optimizer': {'state': {0: {'step': 3, 'exp_avg': torch.zeros(2)}}, 'param_groups': []},
        'epoch': 299,
        'args': argparse.Namespace(lr=1e-3, model=f'EfficientViT_{arch.upper()}'),
    }


def detector_file(detector):
    """Return what the authors' mmdet 2 file holds: ``'retinanet'`` or ``'mask_rcnn'``, M4."""
    body = efficientvit(windows=(7, 7, 7), num_classes=None)
    names = Listing({f'backbone.{key}': shape for key, shape in body.items()})
    for index, channels in enumerate(VARIANTS['m4'].embed_dims):
        names.layer(f'neck.lateral_convs.{index}.conv', 256, channels, 1, 1)
        names.layer(f'neck.fpn_convs.{index}.conv', 256, 256, 3, 3)
    for index in range(1 if detector == 'retinanet' else 2):
        names.layer(f'neck.extra_trans_convs.{index}.conv', 256, 256, 2, 2)
        names.layer(f'neck.extra_fpn_convs.{index}.conv', 256, 256, 3, 3)
    if detector == 'retinanet':
        for branch, outputs in (('cls', 9 * 80), ('reg', 9 * 4)):
            for index in range(4):
                names.layer(f'bbox_head.{branch}_convs.{index}.conv', 256, 256, 3, 3)
            names.layer(f'bbox_head.retina_{branch}', outputs, 256, 3, 3)
    else:
        names.layer('rpn_head.rpn_conv', 256, 256, 3, 3)
        names.layer('rpn_head.rpn_cls', 3, 256, 1, 1)
        names.layer('rpn_head.rpn_reg', 12, 256, 1, 1)
        names.layer('roi_head.bbox_head.fc_cls', 81, 1024)
        names.layer('roi_head.bbox_head.fc_reg', 320, 1024)
        names.layer('roi_head.bbox_head.shared_fcs.0', 1024, 256 * 49)
        names.layer('roi_head.bbox_head.shared_fcs.1', 1024, 1024)
        for index in range(4):
            names.layer(f'roi_head.mask_head.convs.{index}.conv', 256, 256, 3, 3)
        names.layer('roi_head.mask_head.upsample', 256, 256, 2, 2)
        names.layer('roi_head.mask_head.conv_logits', 80, 256, 1, 1)
    meta = {'mmdet_version': '2.25.0', 'CLASSES': CLASSES, 'config': 'model = dict()', 'epoch': 12}
    return {'meta': meta, 'state_dict': names.tensors(), 'optimizer': {'param_groups': []}}
