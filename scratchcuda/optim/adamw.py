from torch.optim.adamw import *
