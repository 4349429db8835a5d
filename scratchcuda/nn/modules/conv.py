from torch.nn.modules.conv import *
