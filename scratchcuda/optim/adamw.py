from torch.optim.adamw import adamw as adamw

from scratchcuda.optim import AdamW as AdamW
