# The same without the pre-trained backbone.
_base_ = 'vcmamba_tiny_fpn_camvid.py'
model = dict(backbone=dict(init_cfg=None))
