from torch.optim.optimizer import *
