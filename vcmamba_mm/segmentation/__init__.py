"""What segmenters need: inferencer, test-time augmentation."""
