"""Training with NFM: the step of mixing and noise, the regularizers as a penalty, and the consistency loss."""
