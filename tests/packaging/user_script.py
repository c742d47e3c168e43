"""What a user would write. It runs, and `make types` checks it in strict mode, so that public names carry types."""

import torch

import nfm_theory as nt

model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double().eval()
x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3

law = nt.Law(alpha=1.0, add_noise=0.4, mult_noise=0.2)
problem = nt.Problem(model, x, y, layer="1", law=law)
terms = nt.terms(problem)
print(terms.R1.item(), float(nt.regularizers(problem).R2_add), nt.loss(problem, eps=0.1).value)
print([nt.verify(p).verdict for p in nt.Problem.at_layers(model, x, y, layers=["", "1"], law=law)])

model.train()
mixup = nt.NoisyFeatureMixup(model, ["", "1"], law, num_classes=3)
inputs, targets = mixup(x, y)
loss = torch.nn.functional.cross_entropy(model(inputs), targets)
(loss + nt.TaylorRegularizer("1", law)(model, x, y)).backward()
