"""What can be shown of the CUDA rules without a GPU: machine code by nvcc, results through OpenCL on the CPU."""
