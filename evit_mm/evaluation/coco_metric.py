"""COCO metric for mmdet with hotcoco, which is written in Rust.

Configs import this module by ``custom_imports`` because it needs mmdet.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from tempfile import TemporaryDirectory
from typing import Any

import hotcoco
import numpy as np
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from ..data.coco_dataset import TolerantCOCO
from ..data.counts import THRESHOLDS, not_evaluated, option_faults
from ..errors import ConfigError, DataError
from ..utils.text import counted
from .coco_eval import precision, summarize

# mmdet's names, in the order of COCOeval.stats
PRECISIONS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
RECALLS = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')


@METRICS.register_module()
class HotCocoMetric(CocoMetric):
    """Compute the metrics of mmdet's CocoMetric with hotcoco, which is many times faster.

    The arguments and the names of the metrics are the same as in CocoMetric, and the values are
    bitwise equal. Set ``type='CocoMetric'`` to evaluate with pycocotools. ``use_mp_eval`` has no
    effect because hotcoco uses all cores. Result files are written only if ``outfile_prefix`` is
    set.

    The annotation file is read by :class:`~evit_mm.data.coco_dataset.TolerantCOCO`.

    The values differ from CocoMetric in four cases, where pycocotools or mmdet is wrong:

    - Only the images that were evaluated count. If the data set has ``indices``, CocoMetric counts
      every object of the other images as not found. The log says how many images count.
    - An object with the id 0 can be matched.
    - With ``classwise=True``, each class gets its own value even if the categories of the file are
      not sorted by id.
    - ``iou_thrs`` may be a number or a list. If 0.5 or 0.75 is not in it, the results, the log and
      the table of classes have no mAP_50 or mAP_75. CocoMetric fails with a list. With an array, it
      returns -1 for them, and its table of classes takes the first and the sixth threshold.

    The values can also differ for invalid input, such as duplicate ids or NaN in boxes.

    Raises:
        ConfigError: ``metric_items`` contains a metric that is unknown or whose IoU threshold is
            not in ``iou_thrs``, or COCO cannot compute AP with ``proposal_nums``.
    """

    _coco_api: Any
    cat_ids: Any
    img_ids: Any

    def __init__(self, ann_file: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(None, *args, **kwargs)
        if ann_file is not None:
            with get_local_path(ann_file, backend_args=self.backend_args) as local_path:
                self._coco_api = TolerantCOCO(local_path)
            if kwargs.get('sort_categories'):  # as in CocoMetric, for Objects365
                self._coco_api.dataset['categories'].sort(key=lambda category: category['id'])
                self._coco_api.createIndex()
        known = PRECISIONS + RECALLS
        unknown = [item for item in self.metric_items or () if item not in known]
        if unknown:
            raise ConfigError(
                f'metric_items has the unknown metric {unknown[0]!r}; choose from '
                f'{", ".join(known)}'
            )
        self.missing = not_evaluated(self.iou_thrs)
        options = (self.metrics, self.iou_thrs, self.proposal_nums, self.metric_items or ())
        for fault in option_faults(*options):
            raise ConfigError(fault)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the metrics under mmdet's names.

        Raises:
            DataError: An evaluated image is not in the annotation file.
            KeyError: The metric is ``'segm'`` and the detector predicts no masks.
        """
        if self.format_only:
            return super().compute_metrics(results)
        logger = MMLogger.get_current_instance()
        objects, predictions = zip(*results, strict=True)
        self._prepare(objects, predictions, logger)
        figures: dict[str, float] = {}
        for metric in self.metrics:
            logger.info(f'Evaluating {metric}...')
            if metric == 'proposal_fast':
                recalls = self.fast_eval_recall(
                    predictions, self.proposal_nums, self.iou_thrs, logger
                )
                names = [f'AR@{number}' for number in self.proposal_nums]
                figures.update(zip(names, recalls, strict=True))
                continue
            if metric == 'segm' and 'masks' not in predictions[0]:
                raise KeyError(f'{metric} is not in results')
            if not any(len(prediction['labels']) for prediction in predictions):
                logger.error('The testing results of the whole dataset is empty.')
                break
            figures.update(self._evaluate(metric, predictions, logger))
        return figures

    def _prepare(self, objects: Sequence, predictions: Sequence, logger: MMLogger) -> None:
        """Convert the annotations if there is no annotation file, and write the result files."""
        if self._coco_api is None:
            logger.info('Converting ground truth to coco format...')
            with TemporaryDirectory() as folder:
                prefix = self.outfile_prefix or f'{folder}/results'
                self._coco_api = TolerantCOCO(self.gt_to_coco_json(objects, prefix))
        if self.cat_ids is None:
            self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        listed = self._coco_api.get_img_ids()
        seen = {prediction['img_id'] for prediction in predictions}
        self.img_ids = [image for image in listed if image in seen]
        if seen.difference(listed):
            raise DataError(
                f'image {min(seen.difference(listed))!r} is not in the ann_file of the evaluator; '
                'use the ann_file of the data set'
            )
        if len(self.img_ids) < len(listed):
            logger.warning(
                f'only {len(self.img_ids):,} of {counted(len(listed), "image")} were evaluated, '
                'and only their objects count'
            )
        if self.outfile_prefix is not None:
            self.results2json(predictions, self.outfile_prefix)

    def _evaluate(self, metric: str, predictions: Sequence, logger: MMLogger) -> dict[str, float]:
        """Return the metrics for ``'bbox'``, ``'segm'`` or ``'proposal'``."""
        of_classes = metric != 'proposal'
        items = self.metric_items
        if items is None:
            items = self._known(PRECISIONS) if of_classes else RECALLS
        with_masks = metric == 'segm'
        # hotcoco needs integer ids for images and classes, mmdet accepts any sortable ids
        dataset = self._coco_api.dataset
        images = {image: place for place, image in enumerate(np.unique(self.img_ids).tolist())}
        categories = sorted({category['id'] for category in dataset['categories']})
        labels = {category: place for place, category in enumerate(categories)}
        truth = self._truth(images, labels, with_masks)
        found = self._found(truth, predictions, images, labels, with_masks)
        evaluator = hotcoco.COCOeval(truth, found, 'segm' if with_masks else 'bbox')
        evaluator.params.cat_ids = [labels[category] for category in sorted(self.cat_ids)]
        evaluator.params.max_dets = sorted(self.proposal_nums)
        evaluator.params.iou_thrs = np.atleast_1d(self.iou_thrs).tolist()
        evaluator.params.use_cats = of_classes
        evaluator.evaluate()
        evaluator.accumulate()
        with redirect_stdout(table := io.StringIO()):
            stats = dict(zip(PRECISIONS + RECALLS, summarize(evaluator), strict=True))
        lines = dict(zip(stats, table.getvalue().splitlines(), strict=True))
        logger.info('\n'.join(['', *(lines[name] for name in self._known(stats))]))

        if not of_classes:
            return {item: float(f'{stats[item]:.3f}') for item in items}
        figures = {}
        if self.classwise:
            thresholds = evaluator.params.iou_thrs
            figures.update(self._of_classes(precision(evaluator), thresholds, logger))
        figures.update({f'{metric}_{item}': float(round(stats[item], 3)) for item in items})
        values = ' '.join(
            '-' if name in self.missing else f'{stats[name]:.3f}' for name in PRECISIONS
        )
        logger.info(f'{metric}_mAP_copypaste: {values}')
        return figures

    def _truth(self, images: Mapping[Any, int], labels: Mapping[Any, int], with_masks: bool) -> Any:
        """Return the annotations for hotcoco, with indices as image and category ids."""
        dataset = self._coco_api.dataset
        kept = [
            a
            for a in dataset.get('annotations', ())
            if a['image_id'] in images and a['category_id'] in labels
        ]
        return hotcoco.COCO.from_arrays(
            [
                {**image, 'id': images[image['id']]}
                for image in dataset['images']
                if image['id'] in images
            ],
            [{**category, 'id': labels[category['id']]} for category in dataset['categories']],
            [images[a['image_id']] for a in kept],
            [labels[a['category_id']] for a in kept],
            np.array([a['bbox'] for a in kept], float).reshape(-1, 4),
            area=[a['area'] for a in kept],
            iscrowd=[bool(a.get('iscrowd')) for a in kept],
            segmentation=[a['segmentation'] for a in kept] if with_masks else None,
        )

    def _found(
        self,
        truth: Any,
        predictions: Sequence,
        images: Mapping[Any, int],
        labels: Mapping[Any, int],
        with_masks: bool,
    ) -> Any:
        """Return the detections for hotcoco."""
        categories = np.array([labels[category] for category in self.cat_ids])
        rows = []
        for prediction in predictions:
            boxes = prediction['bboxes'].astype(float)
            image = np.full(len(boxes), images[prediction['img_id']])
            corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
            label = categories[prediction['labels'].astype(int)]
            score = prediction['scores']
            if with_masks:
                score = prediction.get('mask_scores', score)
            rows.append(np.column_stack([image, corner, extent, score, label]))
        if not with_masks:
            return truth.load_res(np.concatenate(rows))
        masks = list(itertools.chain.from_iterable(p['masks'] for p in predictions))
        found = truth.load_res(np.concatenate(rows), segmentation=masks)
        # use the mask area, not the box area, to decide between small, medium and large
        area = hotcoco.mask.area(masks)
        found.update_anns(ids=np.arange(1, len(masks) + 1), area=area)
        return found

    def _known(self, names: Iterable[str]) -> list[str]:
        """Return the metrics whose IoU threshold is evaluated."""
        return [name for name in names if name not in self.missing]

    def _of_classes(
        self, values: np.ndarray, thresholds: list[float], logger: MMLogger
    ) -> dict[str, float]:
        """Return the AP of each class and log a table, given precision ``(T, R, K, A, M)``."""
        figures: dict[str, float] = {}
        names = self._known(PRECISIONS)
        places = [thresholds.index(THRESHOLDS[name]) for name in names if name in THRESHOLDS]
        table = [['category', *names]]
        for place, category in enumerate(sorted(self.cat_ids)):
            name = self._coco_api.load_cats([category])[0]['name']
            own = values[:, :, place, :, -1]
            cuts = [own[..., 0], *(own[i, :, 0] for i in places), *(own[..., i] for i in (1, 2, 3))]
            row = [round(_mean(cut[cut > -1]), 3) for cut in cuts]
            figures[f'{name}_precision'] = row[0]
            table.append([name, *map(str, row)])
        logger.info('\n' + AsciiTable(table).table)
        return figures


def _mean(values: np.ndarray) -> np.float64:
    return np.mean(values) if values.size else np.float64('nan')
