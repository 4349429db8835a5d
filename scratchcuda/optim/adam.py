from torch.optim.adam import adam as adam

from scratchcuda.optim import Adam as Adam
