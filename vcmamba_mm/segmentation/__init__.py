"""What segmenters need: inferencer, masks, test-time augmentation."""
