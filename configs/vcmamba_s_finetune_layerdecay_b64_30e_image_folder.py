# The earlier a layer, the smaller its learning rate: lr * 0.9 ** (layers
# after it). VCMamba-S has 30 layers: stem, 28 blocks, head.
_base_ = 'vcmamba_s_finetune_b64_30e_image_folder.py'
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),
)
