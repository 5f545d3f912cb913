# The release's classifier: two heads, one taught by RegNetY-16GF with DeiT's
# weights.
_base_ = 'vcmamba_cls.py'
model = dict(
    type='DistilledImageClassifier',
    teacher=dict(
        type='TimmClassifier',
        model_name='regnety_160.deit_in1k',
        pretrained=True,
    ),
    distillation='soft',
    alpha=0.5,
    tau=1.0,
    head=dict(distillation=True),
)
