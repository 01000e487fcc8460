"""AP of resampled images, and the interval of an AP difference over the images and the seeds.

Shapes: I images, B bootstrap samples, D detections, T IoU thresholds, R recall thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import hotcoco
import numpy as np

SAMPLES = 1000
LEVEL = 0.95
BLOCK = 50  # samples at once; a block of (samples, detections) must fit into memory


@dataclass(frozen=True)
class Difference:
    """The interval of the AP difference between two detectors.

    Attributes:
        low: Lower limit of the interval.
        high: Upper limit of the interval.
    """

    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``'leads'``, ``'is behind'`` or ``'undecided'`` if the interval contains 0."""
        if self.low > 0:
            return 'leads'
        return 'is behind' if self.high < 0 else 'undecided'


def draw_images(num_images: int, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Draw images with replacement: return how often each sample contains each image, ``(B, I)``.

    All detectors of a comparison need the same samples, because hard images are hard for all.
    """
    generator = np.random.default_rng(seed)
    share = np.full(num_images, 1 / num_images)
    return generator.multinomial(num_images, share, size=samples)


def resampled_ap(evaluator: hotcoco.COCOeval, counts: np.ndarray) -> np.ndarray:
    """Return COCO's AP of each sample of images.

    The result is what an evaluation would give if each image and its detections occurred as often
    as ``counts`` says, except for the order of equal scores. Objects and detections are matched
    only once, because resampling images does not change the matches.

    Args:
        evaluator: Result of :func:`~evit_mm.evaluation.boxes.coco_evaluator`, whose image ids are
            0 to I - 1.
        counts: ``(B, I)`` how often each sample contains each image.

    Returns:
        ``(B,)`` AP as a fraction: the mean over the classes with an object in the sample. NaN for
        a sample without an object.
    """
    recalls = np.array(evaluator.params.rec_thrs)
    total, present = np.zeros(len(counts)), np.zeros(len(counts))
    for matches in _classes(evaluator):
        objects = counts @ matches.objects_of(counts.shape[1])
        has_object = objects > 0
        present += has_object
        for start in range(0, len(counts), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(counts)))
            rows = rows[has_object[rows]]
            total[rows] += matches.ap(counts[rows], objects[rows], recalls)
    with np.errstate(invalid='ignore'):
        return total / np.where(present, present, np.nan)


def compare_runs(
    better: Sequence[float],
    worse: Sequence[float],
    better_samples: Sequence[np.ndarray] = (),
    worse_samples: Sequence[np.ndarray] = (),
    level: float = LEVEL,
) -> Difference:
    """Return the interval of the AP difference between two detectors, trained with several seeds.

    The variance over the images is that of the bootstrap samples. The variance over the seeds is
    that of the few runs, so the interval has the quantiles of Student's t with Welch's degrees of
    freedom. A bootstrap over two or three runs would be much too narrow. With one run of a
    detector, the interval covers only the images, and has the quantiles of the samples.

    Args:
        better: AP of each run of one detector.
        worse: The same for the other detector.
        better_samples: For each run, ``(B,)`` AP of :func:`resampled_ap`. Without samples of both
            detectors, the interval covers only the seeds.
        worse_samples: The same for the other detector, for the same samples.
        level: Probability that the interval contains the true difference.

    Raises:
        ValueError: There are neither samples nor two runs of each detector.
    """
    from scipy.stats import t  # here, because it is slow to import

    seeds_known = min(len(better), len(worse)) > 1
    images = np.zeros(1)
    if better_samples and worse_samples:
        images = np.mean(better_samples, axis=0) - np.mean(worse_samples, axis=0)
    elif not seeds_known:
        raise ValueError('one run of each detector has no interval without samples')
    tail = (1 - level) / 2
    if not seeds_known:
        low, high = np.nanquantile(images, [tail, 1 - tail])
        return Difference(float(low), float(high))
    parts = [np.var(runs, ddof=1) / len(runs) for runs in (better, worse)]
    variance = np.nanvar(images) + sum(parts)
    spread = sum(p**2 / (len(runs) - 1) for p, runs in zip(parts, (better, worse), strict=True))
    freedom = variance**2 / spread if spread else math.inf
    half = t.ppf(1 - tail, freedom) * math.sqrt(variance)
    center = np.mean(better) - np.mean(worse)
    return Difference(float(center - half), float(center + half))


@dataclass(frozen=True)
class _Matches:
    """The detections of one class by descending score, at all IoU thresholds.

    Attributes:
        image: ``(D,)`` image of each detection.
        is_true: ``(T, D)`` whether the detection matches an object.
        is_ignored: ``(T, D)`` whether the detection does not count.
        image_of_object: Image of each object that counts.
    """

    image: np.ndarray
    is_true: np.ndarray
    is_ignored: np.ndarray
    image_of_object: np.ndarray

    def objects_of(self, num_images: int) -> np.ndarray:
        """Return the number of objects of each image, ``(I,)``."""
        return np.bincount(self.image_of_object, minlength=num_images)

    def ap(self, counts: np.ndarray, objects: np.ndarray, recalls: np.ndarray) -> np.ndarray:
        """Return the AP of each sample ``(B,)`` with its number of objects ``(B,)``."""
        times = counts[:, self.image]  # (B, D)
        total = np.zeros(len(counts))
        for is_true, is_ignored in zip(self.is_true, self.is_ignored, strict=True):
            # the precision is highest where a true detection is added
            places = np.flatnonzero(is_true & ~is_ignored)
            found = np.cumsum(times[:, places], axis=1)
            seen = np.cumsum(np.where(is_ignored, 0, times), axis=1)[:, places]
            precision = found / np.maximum(seen, 1)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = found / objects[:, None]
            for row, (reached, best) in enumerate(zip(recall, precision, strict=True)):
                place = np.searchsorted(reached, recalls, side='left')
                total[row] += np.append(best, 0.0)[place].mean()
        return total / len(self.is_true)


def _classes(evaluator: hotcoco.COCOeval) -> Iterator[_Matches]:
    """Yield the matches of each class, without size ranges."""
    all_sizes = evaluator.params.area_rng[0]
    by_class: dict[int, list[dict]] = {}
    for entry in evaluator.eval_imgs:
        if entry is not None and list(entry['aRng']) == list(all_sizes):
            by_class.setdefault(entry['category_id'], []).append(entry)
    thresholds = len(evaluator.params.iou_thrs)
    for entries in by_class.values():
        entries.sort(key=lambda entry: entry['image_id'])
        sizes = [len(entry['dtScores']) for entry in entries]
        matched, ignored = (
            np.concatenate([np.reshape(e[key], (thresholds, -1)) for e in entries], axis=1)
            for key in ('dtMatched', 'dtIgnore')
        )
        # a stable sort, as in pycocotools
        order = np.argsort(-np.concatenate([e['dtScores'] for e in entries]), kind='stable')
        counted = [np.sum(~np.asarray(e['gtIgnore'], bool)) for e in entries]
        images = [entry['image_id'] for entry in entries]
        yield _Matches(
            np.repeat(images, sizes)[order],
            matched[:, order].astype(bool),
            ignored[:, order].astype(bool),
            np.repeat(images, np.array(counted, int)),
        )
