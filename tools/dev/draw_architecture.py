"""Draw the network with its shapes: python tools/dev/draw_architecture.py [ARCH] [options].

All numbers in the picture are read from the modules. Forward hooks record the shapes of the feature
maps, ``(C, H, W)``, for one image.
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from evit_mm.models import VARIANTS, EfficientViT, EfficientViTFPN
from evit_mm.models.attention import CascadedGroupAttention
from evit_mm.models.efficientvit import EfficientViTBlock, PatchMerging
from evit_mm.models.layers import FFN, ConvBN

Shape = tuple[int, ...]
WIDTH = 980
# fill and line colour
COLOURS = {
    'plain': ('#f1f5f9', '#475569'),
    'conv': ('#dbeafe', '#1d4ed8'),
    'ffn': ('#dcfce7', '#15803d'),
    'attention': ('#fef3c7', '#b45309'),
    'merge': ('#ede9fe', '#6d28d9'),
    'neck': ('#ccfbf1', '#0f766e'),
    'output': ('#134e4a', '#134e4a'),
}
INK, GREY = '#0f172a', '#64748b'


@dataclass
class Traced:
    """A backbone and its neck with the recorded shapes.

    Attributes:
        backbone: The backbone.
        neck: The feature pyramid.
        image: Shape of the image.
        inputs: Input shape ``(C, H, W)`` of each module.
        outputs: Output shape ``(C, H, W)`` of each module.
        levels: Shapes of the outputs of the neck, finest first.
    """

    backbone: EfficientViT
    neck: EfficientViTFPN
    image: Shape
    inputs: dict[nn.Module, Shape] = field(default_factory=dict)
    outputs: dict[nn.Module, Shape] = field(default_factory=dict)
    levels: list[Shape] = field(default_factory=list)


def trace(arch: str, size: tuple[int, int] = (512, 512)) -> Traced:
    """Call the backbone and RetinaNet's neck once, and record the shapes.

    Args:
        arch: Name of a variant.
        size: ``(height, width)`` of the image.
    """
    backbone = EfficientViT(arch)
    neck = EfficientViTFPN(backbone.out_channels, 256, num_outs=5, num_extra_trans_convs=1)
    traced = Traced(backbone, neck, (3, *size))

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, torch.Tensor):
            traced.inputs[module] = tuple(inputs[0].shape[1:])
            traced.outputs[module] = tuple(output.shape[1:])

    parts = nn.ModuleList([backbone, neck]).to('meta').eval()  # only shapes
    for module in parts.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        traced.levels = [
            tuple(x.shape[1:]) for x in neck(backbone(torch.empty(1, *traced.image, device='meta')))
        ]
    return traced


def draw(arch: str, size: tuple[int, int] = (512, 512)) -> str:
    """Return an SVG of the network, its neck, a down-sampling, a block and its attention.

    Args:
        arch: Name of a variant, ``'m0'`` to ``'m5'``.
        size: ``(height, width)`` of the image.

    Raises:
        KeyError: ``arch`` is unknown.
    """
    traced = trace(arch, size)
    sheet = Sheet()
    y = _draw_network(sheet, traced, arch, 24)
    stage = traced.backbone.stages[1]
    y = _draw_merging(sheet, traced, stage, y + 36)
    block = next(part for part in stage if isinstance(part, EfficientViTBlock))
    y = _draw_block(sheet, traced, block, y + 36)
    y = _draw_attention(sheet, traced, block, y + 36)
    return sheet.as_text(y + 10)


class Sheet:
    """A list of SVG elements: boxes, lines and text."""

    def __init__(self) -> None:
        self.elements: list[ET.Element] = []

    def add(self, tag: str, text: str = '', **attributes: object) -> None:
        """Add an element. ``_`` in the name of an attribute becomes ``-``."""
        named = {key.replace('_', '-'): str(value) for key, value in attributes.items()}
        element = ET.Element(tag, named)
        element.text = text or None
        self.elements.append(element)

    def words(self, x: float, y: float, text: str, **attributes: object) -> None:
        """Write one line of text, by default centred on ``x``."""
        defaults = {'font_size': 13, 'fill': INK, 'text_anchor': 'middle'}
        self.add('text', text, x=x, y=y, **(defaults | attributes))

    def upright(self, x: float, y: float, text: str) -> None:
        """Write one line of text from bottom to top, centred on the point."""
        self.words(0, 0, text, transform=f'translate({x + 4:g} {y:g}) rotate(-90)')

    def shape(self, x: float, y: float, shape: Shape, **attributes: object) -> None:
        """Write the shape of a feature map."""
        look = {'font_size': 11.5, 'fill': GREY, 'font_family': 'ui-monospace, monospace'}
        self.words(x, y, ' × '.join(map(str, shape)), **(look | attributes))

    def heading(self, y: float, title: str, rest: str) -> None:
        """Write the heading of a panel."""
        self.words(20, y, title, font_size=17, font_weight=700, text_anchor='start')
        self.words(WIDTH - 20, y, rest, fill=GREY, text_anchor='end')

    def box(
        self, x: float, y: float, width: float, height: float, kind: str, lines: Sequence[str]
    ) -> None:
        """Draw a box with centre ``(x, y)``. The first line of its text is bold."""
        fill, line = COLOURS[kind]
        self.add(
            'rect',
            x=x - width / 2,
            y=y - height / 2,
            width=width,
            height=height,
            rx=7,
            fill=fill,
            stroke=line,
            stroke_width=1.3,
        )
        top = y - 7.5 * (len(lines) - 1) + 4.5
        ink = '#ffffff' if kind == 'output' else INK
        for place, text in enumerate(lines):
            weight, font = (600, 13) if place == 0 else (400, 11.5)
            self.words(x, top + 15 * place, text, font_size=font, font_weight=weight, fill=ink)

    def arrow(self, *points: tuple[float, float], colour: str = GREY, dashed: bool = False) -> None:
        """Draw a line through the points, with an arrow head at the last one."""
        text = ' '.join(f'{x:g},{y:g}' for x, y in points)
        look = {'stroke_dasharray': '4 3'} if dashed else {}
        head = 'head-cascade' if colour == COLOURS['attention'][1] else 'head'
        self.add(
            'polyline',
            points=text,
            fill='none',
            stroke=colour,
            stroke_width=1.5,
            marker_end=f'url(#{head})',
            **look,
        )

    def plus(self, x: float, y: float) -> None:
        """Draw a plus sign."""
        self.add('circle', cx=x, cy=y, r=9, fill='#ffffff', stroke=INK, stroke_width=1.3)
        self.words(x, y + 5, '+', font_size=15)

    def residual(self, left: float, right: float, y: float, top: float) -> None:
        """Draw the residual connection of a branch, up to the plus sign at ``right``."""
        self.plus(right, y)
        self.arrow((left, y), (left, top), (right, top), (right, y - 10))

    def as_text(self, height: float) -> str:
        """Return the SVG with a white background."""
        root = ET.Element(
            'svg',
            {
                'xmlns': 'http://www.w3.org/2000/svg',
                'width': str(WIDTH),
                'height': f'{height:g}',
                'viewBox': f'0 0 {WIDTH} {height:g}',
                'font-family': 'system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif',
            },
        )
        defs = ET.SubElement(root, 'defs')
        for name, colour in (('head', GREY), ('head-cascade', COLOURS['attention'][1])):
            look = {'viewBox': '0 0 8 8', 'refX': '7', 'refY': '4', 'orient': 'auto'}
            size = {'markerWidth': '6', 'markerHeight': '6', 'id': name}
            marker = ET.SubElement(defs, 'marker', {**look, **size})
            ET.SubElement(marker, 'path', {'d': 'M0,0 L8,4 L0,8 z', 'fill': colour})
        paper = {'width': str(WIDTH), 'height': f'{height:g}', 'rx': '10', 'fill': '#ffffff'}
        ET.SubElement(root, 'rect', paper)
        root.extend(self.elements)
        ET.indent(root, ' ')
        return ET.tostring(root, encoding='unicode') + '\n'


def _draw_network(sheet: Sheet, traced: Traced, arch: str, y: float) -> float:
    backbone, neck = traced.backbone, traced.neck
    image = ' × '.join(map(str, traced.image))
    sheet.heading(y + 8, f'EfficientViT-{arch.upper()} and its neck', f'one image of {image}')
    left, lateral, merged, smooth, level, head = 140, 440, 535, 665, 795, 925
    rows = [y + 160 + 105 * i for i in range(5)]  # strides 8 to 128
    sheet.words(left, y + 42, 'backbone: EfficientViT', fill=GREY)
    sheet.words((lateral + smooth) / 2, y + 42, 'neck: EfficientViTFPN', fill=GREY)
    sheet.words(WIDTH - 20, y + 42, 'head: mmdet', fill=GREY, text_anchor='end')

    convs = [part for part in backbone.patch_embed if isinstance(part, ConvBN)]
    channels = ' → '.join(str(conv.c.out_channels) for conv in convs)
    kernel = convs[0].c.kernel_size[0]
    sheet.shape(left, y + 66, traced.image)
    sheet.arrow((left, y + 74), (left, rows[0] - 42))
    lines = ['Stem', f'{len(convs)} convolutions {kernel}×{kernel}, stride 2', channels]
    sheet.box(left, rows[0] - 10, 236, 64, 'conv', lines)
    stem = traced.outputs[convs[-2]]
    sheet.arrow((left + 118, rows[0] - 10), (left + 250, rows[0] - 10), dashed=True)
    sheet.shape(left + 188, rows[0] - 18, stem)
    sheet.words(left + 188, rows[0] + 8, 'with out_stem', fill=GREY, font_size=11.5)
    previous = rows[0] + 22
    for index, stage in enumerate(backbone.stages):
        blocks = [part for part in stage if isinstance(part, EfficientViTBlock)]
        row = rows[index + 1]
        attention = blocks[0].mixer.m.attn
        count = f'{len(blocks)} block' + 's' * (len(blocks) > 1)
        title = 'Down-sampling, ' * any(isinstance(part, PatchMerging) for part in stage) + count
        heads = f'{len(attention.qkvs)} heads, windows of {attention.window_size}×'
        lines = [f'Stage {index + 1}', title, f'{heads}{attention.window_size}']
        sheet.arrow((left, previous), (left, row - 32))
        sheet.shape(left + 8, row - 40, traced.inputs[stage[0]], text_anchor='start')
        sheet.box(left, row, 236, 64, 'attention', lines)
        sheet.arrow((left + 118, row), (lateral - 39, row))
        sheet.shape((left + 118 + lateral - 39) / 2, row - 8, traced.outputs[stage[-1]])
        previous = row + 32

    for index, conv in enumerate(neck.lateral_convs):
        row = rows[index + 1]
        size = conv.conv.kernel_size[0]
        sheet.box(lateral, row, 78, 44, 'neck', [f'{size}×{size}', f'to {conv.conv.out_channels}'])
        last = conv is neck.lateral_convs[-1]  # has no coarser level
        sheet.arrow((lateral + 39, row), (smooth - 45 if last else merged - 10, row))
        if not last:
            sheet.plus(merged, row)
            sheet.arrow((merged + 10, row), (smooth - 45, row))
        if index:
            sheet.arrow((merged, row if last else row - 10), (merged, rows[index] + 10))
            sheet.words(merged + 8, row - 48, 'nearest ×2', font_size=11.5, text_anchor='start')
    trans = neck.extra_trans_convs[0].conv
    size = trans.kernel_size[0]
    sheet.arrow((merged, rows[1] - 10), (merged, rows[0] + 24))
    sheet.box(merged, rows[0], 142, 44, 'neck', [f'transposed {size}×{size}', f'stride {size}'])
    sheet.arrow((merged + 71, rows[0]), (smooth - 35, rows[0]))
    finest = backbone.strides[0] >> len(neck.extra_trans_convs)
    smoothing = [*neck.extra_fpn_convs, *neck.fpn_convs]
    for index, shape in enumerate(traced.levels):
        row, stride = rows[index], finest << index
        if index < len(smoothing):
            size = smoothing[index].conv.kernel_size[0]
            sheet.box(smooth, row, 70 if index == 0 else 90, 44, 'neck', [f'{size}×{size}'])
        else:
            sheet.box(smooth, row, 90, 44, 'neck', ['max-pool', 'stride 2'])
            sheet.arrow((smooth, rows[index - 1] + 22), (smooth, row - 24))
        sheet.arrow((smooth + (35 if index == 0 else 45), row), (level - 42, row))
        sheet.shape(level, row + 34, shape)
        sheet.box(level, row, 84, 36, 'output', [f'P{stride.bit_length() - 1}: /{stride}'])
        sheet.arrow((level + 42, row), (head - 22, row))
    middle, tall = (rows[0] + rows[-1]) / 2, rows[-1] - rows[0] + 50
    sheet.box(head, middle, 44, tall, 'plain', [])
    sheet.upright(head, middle, 'RetinaHead, shared by all levels')
    return rows[-1] + 50


def _chain(
    sheet: Sheet, y: float, steps: Sequence[tuple[str, list[str], bool]], ends: tuple[Shape, Shape]
) -> None:
    """Draw boxes from left to right. Residual branches get a residual connection."""
    room = sum(30 for _, _, residual in steps if residual)
    gap = 15
    width = (WIDTH - 40 - room - gap * (len(steps) + 1)) / len(steps)
    x = 20.0
    sheet.shape(20, y + 52, ends[0], text_anchor='start')
    for kind, lines, residual in steps:
        around = x + 5
        sheet.arrow((x, y), (x + gap, y))
        x += gap
        sheet.box(x + width / 2, y, width, 62, kind, lines)
        x += width
        if residual:
            sheet.arrow((x, y), (x + 11, y))
            sheet.residual(around, x + 20, y, y - 44)
            x += 30
    sheet.arrow((x, y), (x + gap, y))
    sheet.shape(WIDTH - 20, y + 52, ends[1], text_anchor='end')


def _depthwise(conv: ConvBN) -> list[str]:
    size, stride = conv.c.kernel_size[0], conv.c.stride[0]
    return ['depthwise', f'{size}×{size}' + f', stride {stride}' * (stride > 1)]


def _ffn(ffn: FFN) -> list[str]:
    return [
        'FFN',
        f'{ffn.pw1.c.in_channels} → {ffn.pw1.c.out_channels}',
        f'→ {ffn.pw2.c.out_channels}',
    ]


def _pointwise(conv: ConvBN) -> list[str]:
    size = conv.c.kernel_size[0]
    return [f'{size}×{size}', f'{conv.c.in_channels}', f'→ {conv.c.out_channels}']


def _draw_merging(sheet: Sheet, traced: Traced, stage: nn.Sequential, y: float) -> float:
    before, merging, after = stage[0], stage[1], stage[2]
    sheet.heading(y, 'Down-sampling', 'before stage 2; ReLU after the first two convolutions')
    gate = merging.se
    squeeze = [
        str(gate.fc1.in_channels),
        f'→ {gate.fc1.out_channels}',
        f'→ {gate.fc2.out_channels}',
    ]
    steps = [
        ('conv', _depthwise(before[0].m), True),
        ('ffn', _ffn(before[1].m), True),
        ('merge', _pointwise(merging.conv1), False),
        ('merge', _depthwise(merging.conv2), False),
        ('merge', ['SE gate', f'{squeeze[0]} {squeeze[1]}', squeeze[2]], False),
        ('merge', _pointwise(merging.conv3), False),
        ('conv', _depthwise(after[0].m), True),
        ('ffn', _ffn(after[1].m), True),
    ]
    _chain(sheet, y + 70, steps, (traced.inputs[before[0]], traced.outputs[after[1]]))
    return y + 130


def _draw_block(sheet: Sheet, traced: Traced, block: EfficientViTBlock, y: float) -> float:
    sheet.heading(y, 'Block: the sandwich', 'stage 2; five residual branches, attention in windows')
    attention = block.mixer.m.attn
    side = attention.window_size
    heads = f'{len(attention.qkvs)} heads, {side}×{side}'
    steps = [
        ('conv', _depthwise(block.dw0.m), True),
        ('ffn', _ffn(block.ffn0.m), True),
        ('attention', ['cascaded group', 'attention', heads], True),
        ('conv', _depthwise(block.dw1.m), True),
        ('ffn', _ffn(block.ffn1.m), True),
    ]
    _chain(sheet, y + 70, steps, (traced.inputs[block], traced.outputs[block]))
    return y + 130


def _draw_attention(sheet: Sheet, traced: Traced, block: EfficientViTBlock, y: float) -> float:
    attention: CascadedGroupAttention = block.mixer.m.attn
    window = traced.inputs[attention]
    tokens = window[1] * window[2]
    rest = f'in one window of {window[1]}×{window[2]}, {tokens} tokens'
    sheet.heading(y, 'Cascaded group attention', rest)
    lanes = [y + 55 + 84 * i for i in range(len(attention.qkvs))]
    key, _, value = attention.split_sizes
    cascade = COLOURS['attention'][1]
    part, plus, qkv, query, mix, out, concat = 80, 160, 245, 384, 567, 728, 792
    for head, (lane, conv, dw) in enumerate(zip(lanes, attention.qkvs, attention.dws, strict=True)):
        first = head * value
        sheet.box(
            part,
            lane,
            120,
            42,
            'plain',
            [f'head {head + 1}', f'channels {first}–{first + value - 1}'],
        )
        if head:
            sheet.arrow((part + 60, lane), (plus - 10, lane))
            sheet.plus(plus, lane)
            middle = lane - 42
            turn = [(out, lanes[head - 1] + 21), (out, middle), (plus, middle), (plus, lane - 10)]
            sheet.arrow(*turn, colour=cascade)
            sheet.arrow((plus + 10, lane), (qkv - 57, lane))
        else:
            sheet.arrow((part + 60, lane), (qkv - 57, lane))
        sizes = f'{conv.c.in_channels} → {key}+{key}+{value}'
        sheet.box(qkv, lane, 114, 42, 'conv', ['Q, K, V: 1×1', sizes])
        sheet.arrow((qkv + 57, lane), (query - 50, lane))
        kernel = dw.c.kernel_size[0]
        sheet.box(query, lane, 100, 42, 'conv', [f'Q: {kernel}×{kernel}', f'depthwise, {key}'])
        sheet.arrow((query + 50, lane), (mix - 104, lane))
        formula = f'softmax({attention.scale:g} QKᵀ + b) V'
        sheet.box(
            mix,
            lane,
            208,
            42,
            'attention',
            [formula, f'b: {attention.attention_biases.shape[1]} per head'],
        )
        sheet.arrow((mix + 104, lane), (out - 28, lane))
        sheet.box(out, lane, 56, 42, 'plain', ['out', str(value)])
        sheet.arrow((out + 28, lane), (concat - 12, lane))
    middle, tall = (lanes[0] + lanes[-1]) / 2, lanes[-1] - lanes[0] + 42
    sheet.box(concat, middle, 22, tall, 'plain', [])
    sheet.upright(concat, middle, f'concatenate: {sum(c.c.in_channels for c in attention.qkvs)}')
    projection = attention.proj[1]
    sheet.arrow((concat + 12, middle), (855, middle))
    sheet.box(
        905,
        middle,
        98,
        62,
        'conv',
        ['ReLU, 1×1', f'{projection.c.in_channels}', f'→ {projection.c.out_channels}'],
    )
    words = 'cascade: a head also receives the output of the previous head'
    sheet.words(460, lanes[-1] + 44, words, fill=cascade, font_size=12)
    return lanes[-1] + 60


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Draw the network with its shapes, as SVG')
    parser.add_argument('arch', nargs='?', choices=VARIANTS, default='m4')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(512, 512),
        metavar=('H', 'W'),
        help='image size in pixels',
    )
    parser.add_argument('-o', '--out', type=Path, required=True, help='output file (SVG)')
    args = parser.parse_args()
    if min(args.size) < 16:
        parser.error(f'--size must be at least 16 16, got {args.size}')
    return args


if __name__ == '__main__':
    args = parse_args()
    try:
        args.out.write_text(draw(args.arch, tuple(args.size)), encoding='utf-8')
    except OSError as error:
        sys.exit(f'error: {error}')
    print(args.out)
