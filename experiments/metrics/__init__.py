"""Measurements on a trained network: accuracy under noise, attacks and corruptions, calibration, and flips.

| quantity | function |
|---|---|
| clean accuracy | `accuracy.logits_of`, `accuracy.accuracy` |
| white noise, salt and pepper (NFM Tables 1-3) | `noise_accuracy.noise_curve` |
| FGSM and PGD (NFM Figure 5) | `attack_accuracy.fgsm_curve`, `attack_accuracy.attack_curve` |
| RMS calibration error and AURRA (NoisyMix Table 11), ECE | `calibration.calibration_summary` |
| flip probabilities and rates (NoisyMix Tables 12-14) | `flips.flip_probability`, `flips.flip_summary` |
| accuracy under corruptions (NoisyMix Tables 1-3, 6-10) | `corruption.corruption_summary` |

Where a paper's released code differs from the textbook, both versions are implemented. `released` is the paper's.
"""
