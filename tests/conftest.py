# SPDX-License-Identifier: MIT
import os

import torch

# Triton reads it when it is imported: without a GPU its kernels run on the CPU. No operator takes
# them there unless they are asked for by name.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
