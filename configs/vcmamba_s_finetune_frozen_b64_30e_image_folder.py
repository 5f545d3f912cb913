# Stem and first three stages stay as they are: for few images.
_base_ = 'vcmamba_s_finetune_b64_30e_image_folder.py'
model = dict(backbone=dict(frozen_stages=2))
