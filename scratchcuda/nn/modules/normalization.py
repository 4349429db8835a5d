from torch.nn.modules.normalization import *
