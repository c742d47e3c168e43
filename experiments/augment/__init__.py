"""Augmentation of images: crop and flip, AugMix, AutoAugment, CutMix, PuzzleMix.

Single images are bytes `(H, W, C)` in numpy with a numpy `Generator`; batches are tensors `(n, C, H, W)` with a
`torch.Generator`. Wherever randomness is more than one number it is drawn first, into a record, and applied after.
"""
