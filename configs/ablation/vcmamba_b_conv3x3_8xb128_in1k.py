# The depthwise convolution of the paper's text.
_base_ = '../vcmamba_b_8xb128_in1k.py'
model = dict(backbone=dict(mixer_cfg=dict(conv_size=3)))
