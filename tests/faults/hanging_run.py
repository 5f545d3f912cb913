_base_ = 'tiny_run.py'
custom_imports = dict(
    imports=['vcmamba_mm', 'vcmamba_mm.classification', 'faulty'],
    allow_failed_imports=False,
)
train_dataloader = dict(
    timeout=5,
    dataset=dict(
        pipeline=[
            dict(type='SeedSample'),
            dict(type='LoadImageStrict'),
            dict(type='Hang', after=40),
            dict(type='PackInputs'),
        ]
    ),
)
