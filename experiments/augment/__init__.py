"""Augmentation of images: crop and flip, AugMix, AutoAugment, CutMix, PuzzleMix.

A single image is bytes `(H, W, C)` in NumPy and has a NumPy `Generator`. A batch is a tensor `(n, C, H, W)` and has a
`torch.Generator`. If a method needs more than one random number, a record with all of them is drawn first and then
applied.
"""
