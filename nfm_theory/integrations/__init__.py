"""The step and the penalty in other people's loops: timm's script, Lightning, and Hugging Face's Trainer.

None of these modules is loaded by `import nfm_theory`. Each needs its library only when it is imported itself.
"""
