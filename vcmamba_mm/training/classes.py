"""The classes of data, heads and losses, which have to agree."""

from collections.abc import Iterator

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from .errors import SettingError


def unwrapped(model: nn.Module) -> nn.Module:
    """A model without what distributes it or augments its tests."""
    if is_model_wrapper(model):
        model = model.module
    return model.module if isinstance(model, BaseTTAModel) else model


def classes_of(dataloader: DataLoader) -> tuple[str, ...]:
    """Names of the classes of a data set, empty if it has none."""
    metainfo = getattr(dataloader.dataset, 'metainfo', {})
    return tuple(metainfo.get('classes') or ())


def compare_classes(
    training: tuple[str, ...], others: tuple[str, ...], name: str
) -> None:
    """Look for a class that has one number here and another one there.

    Data that name their classes otherwise, or lack the last ones, are right.

    Args:
        training: Names of the classes that were or will be learned.
        others: Those of other data.
        name: What these are for, for the message.

    Raises:
        SettingError: If there is one.
    """
    numbers = {its: i for i, its in enumerate(training)}
    for its, i in {its: i for i, its in enumerate(others)}.items():
        if numbers.get(its, i) != i:
            raise SettingError(
                f'class {its!r} is number {i} in the {name} data, in the '
                f'training data it is {numbers[its]}: both need the same '
                'classes in the same order (for a folder for each class: the '
                'same folders)'
            )


def _heads_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The heads that have a number of classes, with their keys."""
    for key in ('head', 'decode_head', 'auxiliary_head', 'bbox_head'):
        heads = getattr(getattr(model, 'roi_head', model), key, None)
        if not isinstance(heads, nn.ModuleList):  # of a cascade
            heads = [heads]
        for head in heads:
            if getattr(head, 'num_classes', None):
                yield f'model.{key}', head


def _check_losses(key: str, head: nn.Module) -> None:
    """Look whether a head and its losses go together.

    Raises:
        SettingError: If a loss weighs another number of outputs, or the one
            output that mmseg has for two classes is not used for two.
    """
    outputs = getattr(head, 'out_channels', head.num_classes)
    outputs += hasattr(head, 'num_queries')  # they weigh "no object", too
    losses = list(head.modules())
    for name in ('class_weight', 'pos_weight'):
        for loss in losses:
            weight = getattr(loss, name, None)
            if hasattr(weight, '__len__') and len(weight) != outputs:
                raise SettingError(
                    f'{name} of the {type(loss).__name__} of {key} has '
                    f'{len(weight)} numbers for {outputs} outputs: give one '
                    'for each'
                )
    binary = getattr(head, 'out_channels', None) == 1
    softmax = any(getattr(x, 'use_sigmoid', None) is False for x in losses)
    if binary and (softmax or head.num_classes == 1):
        raise SettingError(
            f'{key} has one output: to tell an object from its background '
            'set num_classes=2, out_channels=1 and '
            'loss_decode.use_sigmoid=True, and name both in metainfo'
        )


def check_classes(runner: Runner) -> None:
    """Compare the classes of the training data with all that has a number.

    Raises:
        SettingError: If the head, the weights of its loss or what mixes
            images have another number of them, or the validation data
            number them otherwise.
    """
    model = unwrapped(runner.model)
    classes = classes_of(runner.train_loop.dataloader)
    numbers = []
    for key, head in _heads_of(model):
        if key != 'model.auxiliary_head':  # may have classes of its own
            numbers.append(('the head', head.num_classes, key))
        # MMEngine's runner of sharded models builds them later; that of boxes
        # weighs the background, too.
        if isinstance(head, nn.Module) and key != 'model.bbox_head':
            _check_losses(key, head)
    preprocessor = getattr(model, 'data_preprocessor', None)
    if getattr(preprocessor, 'batch_augments', None):
        number = getattr(preprocessor, 'num_classes', None)
        numbers.append(('what mixes images', number, 'data_preprocessor'))
    for name, number, key in numbers:
        if classes and number and number != len(classes):
            raise SettingError(
                f'the training data has {len(classes)} classes, {name} '
                f'{number}: set {key}.num_classes in the config'
            )
    if runner.val_loop is not None:
        compare_classes(
            classes, classes_of(runner.val_loop.dataloader), 'validation'
        )
