from scratchcuda.optim import SGD as SGD
