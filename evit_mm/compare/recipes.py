"""The recipe beyond the paper's: one table of switches, each a change of any EfficientViT config.

``configs/retinanet_evit_m4_plus_coco.py`` is ``retinanet_evit_m4_coco.py`` with all of them
applied, which a test asserts; the ablation applies them one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mmengine.config import Config

from ..errors import ConfigError
from ..utils.text import did_you_mean
from .published_results import label_of

# 117,266 images with objects in batches of 16, 12 epochs
COCO_ITERATIONS = 7_330 * 12
EMA_MOMENTUM = 0.0002  # an average over some 5,000 iterations
EMA_GAMMA = 2000  # iterations in which the average grows to that length
DROP_PATH_RATE = 0.1
SHORTEST = 0.6  # of the scale's shorter side: 480 of 800
LONGER = 3
SEPARATOR = '+'


def train_bn(cfg: Config) -> None:
    """Let the backbone's BatchNorm learn, its statistics those of all processes together."""
    cfg.model.backbone.norm_eval = False
    cfg.sync_bn = 'torch'


def stem_stride8(cfg: Config) -> None:
    """Take the stride-8 map from the stem in place of transposing the stride-16 one."""
    neck = cfg.model.neck
    cfg.model.backbone.out_stem = True
    neck.in_channels = [neck.in_channels[0] // 2, *neck.in_channels]
    neck.num_extra_trans_convs = 0


def no_decay(cfg: Config) -> None:
    """Take norms and biases out of the weight decay, as the attention biases are already."""
    cfg.optim_wrapper.paramwise_cfg.update(norm_decay_mult=0.0, bias_decay_mult=0.0)


def drop_path(cfg: Config) -> None:
    """Leave out residual branches at random, the last block's with a tenth's probability."""
    cfg.model.backbone.drop_path_rate = DROP_PATH_RATE


def multi_scale(cfg: Config) -> None:
    """Draw the shorter side of each training image, from 0.6 of the usual one up."""
    pipeline = cfg.train_dataloader.dataset.pipeline
    for index, step in enumerate(pipeline):
        if step.type == 'Resize':
            longer, shorter = step.scale
            smallest = (longer, round(SHORTEST * shorter))
            pipeline[index] = {
                'type': 'RandomResize',
                'scale': [smallest, (longer, shorter)],
                'keep_ratio': True,
            }


def ema(cfg: Config) -> None:
    """Evaluate and keep a running average of the weights, RTMDet's."""
    hook = {
        'type': 'EMAHook',
        'ema_type': 'ExpMomentumEMA',
        'momentum': EMA_MOMENTUM,
        'gamma': EMA_GAMMA,
        'update_buffers': True,
    }
    cfg.custom_hooks = [*cfg.custom_hooks, hook]


def schedule_3x(cfg: Config) -> None:
    """Train three times as long, the rate's steps at the same parts of it."""
    _, steps = cfg.param_scheduler
    cfg.train_cfg.max_epochs *= LONGER
    steps.end *= LONGER
    steps.milestones = [LONGER * epoch for epoch in steps.milestones]


# In the order of docs/recipes.md: the name for people, and what changes a config in place.
SWITCHES: dict[str, tuple[str, Callable[[Config], None]]] = {
    'train_bn': ('BatchNorm trained', train_bn),
    'stem_stride8': ('stride 8 from the stem', stem_stride8),
    'no_decay': ('no decay on norms and biases', no_decay),
    'drop_path': ('drop path', drop_path),
    'multi_scale': ('multi-scale training', multi_scale),
    'ema': ('EMA', ema),
    'schedule_3x': ('3x schedule', schedule_3x),
}
# What a comparison can run: names of switches, applied in this order.
RECIPES: dict[str, tuple[str, ...]] = {
    'paper': (),
    **{name: (name,) for name in SWITCHES},
    'plus_1x': tuple(name for name in SWITCHES if name != 'schedule_3x'),
    'plus': tuple(SWITCHES),
}
LABELS = {
    'paper': "the paper's recipe",
    **{name: label for name, (label, _) in SWITCHES.items()},
    'plus_1x': 'all but the 3x schedule',
    'plus': 'all',
}


def apply_switches(cfg: Config, names: Iterable[str]) -> Config:
    """Apply switches to a config with the authors' schedule in place, and return it."""
    for name in names:
        _, change = SWITCHES[name]
        change(cfg)
    return cfg


def fit_ema(cfg: Config, iterations: int) -> None:
    """Let EMA average over as large a part of a 1x schedule of so many iterations as of COCO's."""
    times = COCO_ITERATIONS / iterations
    for hook in cfg.custom_hooks:
        if hook['type'] == 'EMAHook':
            hook['momentum'] = round(min(times * EMA_MOMENTUM, 0.5), 6)
            hook['gamma'] = max(round(EMA_GAMMA / times), 1)


def base_recipe(pretrained: bool) -> str:
    """Return the recipe that each switch is added to, and set against.

    Frozen statistics are those of ImageNet; from scratch there are none, so the base is the paper's
    recipe with BatchNorm trained.
    """
    return 'paper' if pretrained else 'train_bn'


def switches_of(recipe: str, pretrained: bool) -> tuple[str, ...]:
    """Return a recipe's switches, with those of the base, which only ``paper`` goes without."""
    chosen = RECIPES[recipe]
    if recipe != 'paper':
        chosen += RECIPES[base_recipe(pretrained)]
    return tuple(name for name in SWITCHES if name in chosen)


def with_recipes(models: Iterable[str], recipes: Iterable[str]) -> list[str]:
    """Return the names of a comparison's rows: the models, or ``MODEL+RECIPE`` of all pairs."""
    models, recipes = list(dict.fromkeys(models)), list(dict.fromkeys(recipes))
    for recipe in recipes:
        if recipe not in RECIPES:
            hint = did_you_mean(recipe, RECIPES)
            raise ConfigError(f"unknown recipe '{recipe}'{hint}; choose from {', '.join(RECIPES)}")
    for model in models:
        if recipes and not model.startswith('evit_'):
            raise ConfigError(
                f"--recipes needs EfficientViT models (for example --models evit_m0), got '{model}'"
            )
    return [f'{m}{SEPARATOR}{r}' for m in models for r in recipes] if recipes else models


def split_name(name: str) -> tuple[str, str | None]:
    """Return the model and the recipe of a row's name; no recipe is None."""
    model, _, recipe = name.partition(SEPARATOR)
    return model, recipe or None


def base_of(name: str, pretrained: bool) -> str | None:
    """Return the row that a row is set against, None for one without a recipe."""
    model, recipe = split_name(name)
    return f'{model}{SEPARATOR}{base_recipe(pretrained)}' if recipe else None


def row_label(name: str) -> str:
    """Return a row's name for people."""
    model, recipe = split_name(name)
    return f'{label_of(model)}, {LABELS[recipe]}' if recipe else label_of(model)
