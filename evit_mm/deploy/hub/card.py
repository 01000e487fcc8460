"""The model card of a published detector, ``README.md``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...utils.text import counted, markdown_table

NOT_MEASURED = 'not measured'
UNKNOWN_LICENSE = 'unknown'

BODY = """# {name}

{what}. It was trained with evit_mm, which brings EfficientViT (Microsoft,
[arXiv 2305.07027](https://arxiv.org/abs/2305.07027)) to mmdet.

## Use

```python
from evit_mm import Detector

detector = Detector('hf-hub:OWNER/{name}')
detector('image.jpg')
```

Replace `OWNER/{name}` with the name of the repository, or give the path of a folder with these
files. `config.json` is data, and `model.safetensors` contains only tensors. Reading them runs no
code.

## Measured figures

{figures}

## Classes

The names in the order of the labels:

```json
{classes}
```
"""


@dataclass(frozen=True)
class Figures:
    """The result of an evaluation of the published files.

    Attributes:
        metrics: Value by name, as the evaluator gives them.
        dataset: Name of the data set.
        annotations: Name of its annotation file. Empty if it has none.
        images: Number of its images.
    """

    metrics: Mapping[str, float]
    dataset: str
    annotations: str
    images: int


def write_card(
    name: str,
    what: str,
    classes: Sequence[str],
    figures: Figures | None,
    license_id: str,
    tags: Sequence[str],
    versions: Mapping[str, str],
) -> str:
    """Return the text of the card.

    Args:
        name: Name of the model.
        what: What it is, without a full stop.
        classes: Class names in the order of the labels.
        figures: Measured figures. None writes "not measured".
        license_id: Identifier of the licence in the terms of the hub.
        tags: Tags, such as the type of the detector.
        versions: Versions of the packages that the figures were measured with.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results, table = [], NOT_MEASURED.capitalize() + '.'
    metrics = figures.metrics if figures else {}
    # evaluators give numbers of numpy, too
    values = {key: float(x) for key, x in metrics.items() if _is_measured(x)}
    if figures and values:
        where = f'`{figures.dataset}`'
        where += f' (`{figures.annotations}`)' if figures.annotations else ''
        results = [
            EvalResult(
                task_type='object-detection',
                dataset_type=figures.dataset,
                dataset_name=' '.join(filter(None, (figures.dataset, figures.annotations))),
                metric_type=key.rpartition('/')[2],
                metric_name=key,
                metric_value=value,
            )
            for key, value in values.items()
        ]
        rows = [(key, f'{value:.4g}') for key, value in values.items()]
        packages = ', '.join(f'{package} {version}' for package, version in versions.items())
        about = (
            f'Measured with the files of this folder on {counted(figures.images, "image")} of the '
            f'data set {where}, with {packages}:'
        )
        table = '\n'.join([about, '', *markdown_table(('metric', 'value'), rows)])
    data: Any = ModelCardData(
        license=license_id,
        library_name='evit_mm',
        pipeline_tag='object-detection',
        tags=list(tags),
        model_name=name,
        eval_results=results or None,
    )
    body = BODY.format(
        name=name,
        what=what,
        figures=table,
        classes=json.dumps(list(classes), ensure_ascii=False),
    )
    return f'---\n{data.to_yaml()}\n---\n\n{body}'


def _is_measured(value: Any) -> bool:
    """Return whether a value is a result. pycocotools gives -1 for sizes without objects."""
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
