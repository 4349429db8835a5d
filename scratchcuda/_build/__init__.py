"""What is built from csrc, and how: the CUDA extension ``_C``, and the emulator.

setup.py builds the extension when the package is installed beside a CUDA build of torch; where it did not, or where
what it built does not fit, the first CUDA tensor builds it (_backend.py). The first use of the emulator builds that.
Nothing here imports the rest of the package: setup.py imports this folder, maybe where there is no torch.
"""
