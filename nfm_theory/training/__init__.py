"""Training with NFM: the mixing step, the regularizers as a penalty, the consistency loss."""
