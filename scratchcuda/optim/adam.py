from torch.optim.adam import *
