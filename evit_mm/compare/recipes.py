"""Training recipes: a table of switches that change the config of an EfficientViT detector.

The ablation applies one switch at a time. ``configs/retinanet_evit_m4_plus_coco.py`` equals
``retinanet_evit_m4_coco.py`` with the switches of the recipe ``plus``, see docs/recipes.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mmengine.config import Config

from ..errors import ConfigError
from ..utils.text import did_you_mean
from .published_results import label_of

# 117,266 images with objects, batch size 16, 12 epochs
COCO_ITERATIONS = 7_330 * 12
EMA_MOMENTUM = 0.0002  # averages over about 5,000 iterations
EMA_GAMMA = 2000  # iterations until the average reaches this length
DROP_PATH_RATE = 0.1
SHORTEST = 0.8  # smallest shorter side relative to the scale: 640 of 800
LONGER = 3
SEPARATOR = '+'


def train_bn(cfg: Config) -> None:
    """Train the BatchNorm layers of the backbone, with statistics over all processes."""
    cfg.model.backbone.norm_eval = False
    cfg.sync_bn = 'torch'


def stem_stride8(cfg: Config) -> None:
    """Use the stride-8 map of the stem instead of upsampling the stride-16 map."""
    neck = cfg.model.neck
    cfg.model.backbone.out_stem = True
    neck.in_channels = [neck.in_channels[0] // 2, *neck.in_channels]
    neck.num_extra_trans_convs = 0


def no_decay(cfg: Config) -> None:
    """Apply no weight decay to norms and biases, as for the attention biases."""
    cfg.optim_wrapper.paramwise_cfg.update(norm_decay_mult=0.0, bias_decay_mult=0.0)


def drop_path(cfg: Config) -> None:
    """Drop residual branches at random, with probability 0.1 in the last block."""
    cfg.model.backbone.drop_path_rate = DROP_PATH_RATE


def multi_scale(cfg: Config) -> None:
    """Draw the shorter side of each training image from 0.8 to 1 times the usual side."""
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
    """Evaluate and save an exponential moving average of the weights, as in RTMDet."""
    hook = {
        'type': 'EMAHook',
        'ema_type': 'ExpMomentumEMA',
        'momentum': EMA_MOMENTUM,
        'gamma': EMA_GAMMA,
        'update_buffers': True,
    }
    cfg.custom_hooks = [*cfg.custom_hooks, hook]


def schedule_3x(cfg: Config) -> None:
    """Train three times as long, and scale the milestones of the learning rate."""
    _, steps = cfg.param_scheduler
    cfg.max_epochs = cfg.train_cfg.max_epochs = LONGER * cfg.train_cfg.max_epochs
    steps.end *= LONGER
    steps.milestones = [LONGER * epoch for epoch in steps.milestones]


# In the order of docs/recipes.md: display name, and a function that changes a config in-place.
SWITCHES: dict[str, tuple[str, Callable[[Config], None]]] = {
    'train_bn': ('BatchNorm trained', train_bn),
    'stem_stride8': ('stride 8 from the stem', stem_stride8),
    'no_decay': ('no decay on norms and biases', no_decay),
    'drop_path': ('drop path', drop_path),
    'multi_scale': ('multi-scale training', multi_scale),
    'ema': ('EMA', ema),
    'schedule_3x': ('3x schedule', schedule_3x),
}
# The recipes of a comparison, with their switches.
RECIPES: dict[str, tuple[str, ...]] = {
    'paper': (),
    **{name: (name,) for name in SWITCHES},
    'plus': ('multi_scale', 'schedule_3x'),
}
LABELS = {
    'paper': "the paper's recipe",
    **{name: label for name, (label, _) in SWITCHES.items()},
    'plus': 'the plus recipe',
}


def apply_switches(cfg: Config, names: Iterable[str]) -> Config:
    """Apply switches in-place to a config with the authors' schedule, and return the config."""
    for name in names:
        _, change = SWITCHES[name]
        change(cfg)
    return cfg


def fit_ema(cfg: Config, iterations: int) -> None:
    """Scale the length of the EMA to a 1x schedule with ``iterations`` instead of COCO's."""
    times = COCO_ITERATIONS / iterations
    for hook in cfg.custom_hooks:
        if hook['type'] == 'EMAHook':
            hook['momentum'] = round(min(times * EMA_MOMENTUM, 0.5), 6)
            hook['gamma'] = max(round(EMA_GAMMA / times), 1)


def base_recipe(pretrained: bool) -> str:
    """Return the base recipe, which each switch extends and is compared with.

    The paper's recipe freezes the BatchNorm statistics of ImageNet. These do not exist in a
    training from scratch, where the base is the paper's recipe with trained BatchNorm.
    """
    return 'paper' if pretrained else 'train_bn'


def switches_of(recipe: str, pretrained: bool) -> tuple[str, ...]:
    """Return the switches of a recipe and of its base; ``paper`` has no switches."""
    chosen = RECIPES.get(recipe, tuple(recipe.split(SEPARATOR)))
    if recipe != 'paper':
        chosen += RECIPES[base_recipe(pretrained)]
    return tuple(name for name in SWITCHES if name in chosen)


def with_recipes(models: Iterable[str], recipes: Iterable[str]) -> list[str]:
    """Return the row names of a comparison: the models, or ``MODEL+RECIPE`` for all pairs.

    A recipe is a name in :data:`RECIPES`, or several switches as ``SWITCH+SWITCH``.
    """
    models, recipes = list(dict.fromkeys(models)), list(dict.fromkeys(recipes))
    for recipe in recipes:
        parts = recipe.split(SEPARATOR)
        for name in parts:
            known = RECIPES if len(parts) == 1 else SWITCHES
            if name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(f"unknown recipe '{name}'{hint}; choose from {', '.join(known)}")
    for model in models:
        if SEPARATOR in model:
            raise ConfigError(
                f"--models '{model}' contains a recipe; give recipes with --recipes, which "
                'combines each model with each recipe'
            )
        if recipes and not model.startswith('evit_'):
            raise ConfigError(
                f"--recipes needs EfficientViT models (for example --models evit_m0), got '{model}'"
            )
    return [f'{m}{SEPARATOR}{r}' for m in models for r in recipes] if recipes else models


def split_name(name: str) -> tuple[str, str | None]:
    """Return the model and the recipe of a row name; the recipe may be None."""
    model, _, recipe = name.partition(SEPARATOR)
    return model, recipe or None


def base_of(name: str, pretrained: bool) -> str | None:
    """Return the name of the base row, or None for a row without a recipe."""
    model, recipe = split_name(name)
    return f'{model}{SEPARATOR}{base_recipe(pretrained)}' if recipe else None


def row_label(name: str) -> str:
    """Return the display name of a row."""
    model, recipe = split_name(name)
    if recipe is None:
        return label_of(model)
    names = [recipe] if recipe in LABELS else recipe.split(SEPARATOR)
    labels = [LABELS[name] for name in names]
    return f'{label_of(model)}, {" and ".join(labels)}'
