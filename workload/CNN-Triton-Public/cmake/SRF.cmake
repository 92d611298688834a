set(PRECISIONS avx_int8 avx_fp32)
