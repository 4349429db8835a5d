from torch.nn.modules.pooling import *
