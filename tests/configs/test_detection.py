"""Detectors on the backbone, with mmdet and compiled mmcv."""

import json
import re

import mmengine
import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from torchvision.ops import box_iou

from vcmamba_mm.checkpoints import read_checkpoint
from vcmamba_mm.model_zoo import metafiles

pytest.importorskip('mmdet', reason='needs mmdet, see docs/detection.md')
pytest.importorskip(
    'mmcv.ops', reason='needs mmcv compiled, see docs/detection.md'
)
from mmdet.datasets import CocoDataset
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks

DETECTORS = sorted((ROOT / 'configs').rglob('*_coco.py'))
TINY = CONFIGS / 'tiny_detector.py'
ROW = re.compile(r'^\| `(\w+_[\w-]+_coco)` \| ([\d.]+) M \|', re.M)


def test_all_build_through_custom_imports_alone(run):
    """In a process that imports nothing else of ours; parameters as said."""
    script = (
        'import json, sys\n'
        'from mmengine.config import Config\n'
        'from mmengine.registry import MODELS, init_default_scope\n'
        'init_default_scope("mmdet")\n'
        'models = [MODELS.build(Config.fromfile(p).model)'
        ' for p in sys.argv[1:]]\n'
        'sizes = [sum(p.numel() for p in m.parameters()) for m in models]\n'
        'print(json.dumps(sizes))'
    )
    output = run('python', '-c', script, *DETECTORS).stdout
    sizes = json.loads(output.splitlines()[-1])
    sizes = {
        path.stem: size for path, size in zip(DETECTORS, sizes, strict=True)
    }
    said = dict(ROW.findall((ROOT / 'docs/detection.md').read_text()))
    assert said == {name: f'{size / 1e6:.2f}' for name, size in sizes.items()}
    assert sizes == {
        model['Name']: model['Metadata']['Parameters']
        for metafile in metafiles()
        if metafile.stem == 'metafile_detection'
        for model in mmengine.load(metafile)['Models']
    }


@pytest.mark.parametrize('path', DETECTORS, ids=lambda path: path.stem)
def test_masks_are_read_where_there_is_a_mask_head(path):
    cfg = Config.fromfile(path)
    for loop in ('train', 'val', 'test'):
        (loading,) = (
            step
            for step in cfg[f'{loop}_dataloader'].dataset.pipeline
            if step.type == 'LoadAnnotations'
        )
        assert loading.with_bbox
        assert loading.get('with_mask', False) == ('mask-rcnn' in path.stem)


# The smallest of each kind and family, and what it learns from.
ONE_STAGE = {'loss_cls', 'loss_bbox'}
RPN = {'loss_rpn_cls', 'loss_rpn_bbox'}
MASK_RCNN = RPN | {'loss_cls', 'loss_bbox', 'loss_mask'}
CASCADE = RPN | {
    f's{i}.{name}'
    for i in range(3)
    for name in ('loss_cls', 'loss_bbox', 'loss_mask')
}
SMALLEST = {
    'detection/vcmamba_s_retinanet_fpn_8xb2_1x_coco': ONE_STAGE,
    'detection/vcmamba_s_mask-rcnn_fpn_8xb2_1x_coco': MASK_RCNN,
    'vmamba/vmamba_t_mask-rcnn_fpn_8xb2_1x_coco': MASK_RCNN,
    'mambavision/mambavision_t_cascade-mask-rcnn_fpn_8xb2_3x_coco': CASCADE,
    'plainmamba/plainmamba_l1_retinanet_fpn_8xb2_1x_coco': ONE_STAGE,
    'plainmamba/plainmamba_l1_mask-rcnn_fpn_8xb2_1x_coco': MASK_RCNN,
}


def build(name):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    # Untrained, it is sure of nothing.
    cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg).score_thr = 0.0
    model = MODELS.build(cfg.model)
    model.init_weights()
    return revert_sync_batchnorm(model)


def picture(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def sample(height, width, **kwargs):
    size = (height, width)
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    return DetDataSample(metainfo=meta, **kwargs)


def truth(height, width):
    boxes = torch.tensor([[10, 10, 60, 60], [30, 20, 120, 90]])
    masks = np.zeros((2, height, width), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.tolist()):
        mask[top:bottom, left:right] = 1
    return InstanceData(
        bboxes=boxes.float(),
        labels=torch.tensor([3, 7]),
        masks=BitmapMasks(masks, height, width),
    )


@pytest.mark.parametrize('name, losses', SMALLEST.items())
def test_losses_and_gradients(name, losses):
    model = build(name).train()
    size = (96, 128)
    batch = dict(
        inputs=[picture(*size), picture(*size)],
        data_samples=[
            sample(*size, gt_instances=truth(*size)) for _ in range(2)
        ],
    )
    batch = model.data_preprocessor(batch, training=True)
    loss, parts = model.parse_losses(model(**batch, mode='loss'))
    assert losses <= parts.keys()
    assert all(torch.isfinite(parts[key]) for key in losses)
    loss.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
    weights = (p for p in model.backbone.parameters() if p.dim() == 4)
    assert next(weights).grad.abs().sum() > 0


@pytest.mark.parametrize('name', SMALLEST)
def test_predictions_at_an_odd_size(name):
    """In the picture, sorted by score, and no two of a class on one spot."""
    model = build(name).eval()
    height, width = 75, 103
    batch = dict(
        inputs=[picture(height, width)], data_samples=[sample(height, width)]
    )
    with torch.no_grad():
        (result,) = model.test_step(batch)
    found = result.pred_instances
    assert len(found) == 100
    assert ((found.scores > 0) & (found.scores < 1)).all()
    assert (found.scores.diff() <= 0).all()
    assert found.bboxes.min() >= 0
    assert (found.bboxes[:, 0::2] <= width).all()
    assert (found.bboxes[:, 1::2] <= height).all()
    for label in found.labels.unique():
        boxes = found.bboxes[found.labels == label]
        assert (box_iou(boxes, boxes).triu(1) <= 0.5).all()
    if 'mask-rcnn' in name:
        assert found.masks.shape == (100, height, width)
        assert found.masks.dtype == torch.bool


# ------------------------------------------------- tools, on made-up pictures


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    """Two bright rectangles on noise in six pictures, COCO's layout."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'pictures').mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(6):
        width, height = (120, 90) if i % 3 else (70, 100)
        pixels = rng.integers(0, 100, (height, width, 3), dtype=np.uint8)
        for j in range(2):
            x, y, w, h = 5 + 30 * j, 10 + 20 * j, 40, 35
            pixels[y : y + h, x : x + w] = rng.integers(150, 256, 3)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i,
                    category_id=j,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
        name = f'{i}.png'
        Image.fromarray(pixels).save(root / 'pictures' / name)
        images.append(dict(id=i, file_name=name, width=width, height=height))
    categories = [
        dict(id=i, name=name)
        for i, name in enumerate(CocoDataset.METAINFO['classes'])
    ]
    (root / 'annotations.json').write_text(
        json.dumps(
            dict(images=images, annotations=annotations, categories=categories)
        )
    )
    return root


def options(root, *loops):
    for loop in loops:
        yield f'{loop}_dataloader.dataset.data_root={root}'
        if loop != 'train':
            yield f'{loop}_evaluator.ann_file={root / "annotations.json"}'


@pytest.fixture(scope='module')
def trained(run, coco, tmp_path_factory):
    """Work dir and log of two epochs."""
    work_dir = tmp_path_factory.mktemp('detector')
    process = run(
        'tools/train.py',
        TINY,
        '--work-dir',
        work_dir,
        '--cfg-options',
        *options(coco, 'train', 'val'),
    )
    return work_dir, process.stdout


def test_train(trained):
    work_dir, log = trained
    for epoch in (1, 2):
        assert re.search(
            rf'Epoch\(train\) \[{epoch}\]\[3/3\].*grad_norm: [\d.]+'
            r'  loss: [\d.]+.*loss_mask: [\d.]+',
            log,
        )
        assert re.search(
            rf'Epoch\(val\) \[{epoch}\]\[6/6\] +coco/bbox_mAP: [\d.]+'
            r'.*coco/segm_mAP: [\d.]+',
            log,
        )
    assert list(work_dir.glob('best_coco_bbox_mAP_epoch_*.pth'))


def test_resumed_after_an_epoch_ends_the_same(
    trained, coco, run_here, tmp_path
):
    for epochs in (1, 2):
        run_here(
            'train.py',
            TINY,
            '--work-dir',
            tmp_path,
            '--resume',
            '--no-validate',
            '--cfg-options',
            f'train_cfg.max_epochs={epochs}',
            *options(coco, 'train'),
        )
    begin, end, expected = (
        read_checkpoint(path)['state_dict']
        for path in (
            tmp_path / 'epoch_1.pth',
            tmp_path / 'epoch_2.pth',
            trained[0] / 'epoch_2.pth',
        )
    )
    for name, value in expected.items():
        assert torch.equal(end[name], value), name
    assert any(not torch.equal(begin[name], end[name]) for name in end)


def test_test(trained, coco, run_here, tmp_path):
    log = run_here(
        'test.py',
        TINY,
        trained[0] / 'epoch_2.pth',
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'predictions.pkl',
        '--show-dir',
        tmp_path / 'show',
        '--cfg-options',
        *options(coco, 'test'),
    )
    assert re.search(r'coco/bbox_mAP: [\d.]+.*coco/segm_mAP: [\d.]+', log)
    predictions = mmengine.load(tmp_path / 'predictions.pkl')
    assert len(predictions) == 6
    assert all(len(p['pred_instances']['scores']) == 20 for p in predictions)
    assert len(list((tmp_path / 'show').glob('*.png'))) == 6


def test_wrong_number_of_classes(coco, run_here, tmp_path):
    error = run_here(
        'train.py',
        TINY,
        '--work-dir',
        tmp_path,
        '--no-validate',
        '--cfg-options',
        'model.roi_head.bbox_head.num_classes=3',
        *options(coco, 'train'),
    )
    assert error.startswith(
        'error: the training data has 80 classes, the head 3: '
    )


def test_macs(run_here):
    """Of one stage, as the documentation has them; of two, a clear error."""
    config = 'configs/detection/vcmamba_s_{}_fpn_8xb2_1x_coco.py'
    args = ('--shape', 800, 1280)
    table = run_here('get_flops.py', config.format('retinanet'), *args)
    (macs,) = re.findall(r'^total .* ([\d.]+) GMAC', table, re.M)
    text = (ROOT / 'docs/detection.md').read_text()
    assert f' 19.52 M | {float(macs):.1f} G |' in text
    error = run_here('get_flops.py', config.format('mask-rcnn'), *args)
    assert error.startswith('error: MaskRCNN: what its second stage computes')
