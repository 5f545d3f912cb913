_base_ = 'tiny_run.py'
custom_imports = dict(
    imports=['vcmamba_mm', 'vcmamba_mm.classification', 'faulty'],
    allow_failed_imports=False,
)
custom_hooks = [dict(type='PoisonHook', at=13)]
train_cfg = dict(max_epochs=3)
