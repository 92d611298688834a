set(PRECISIONS avx_bfloat16 avx_int8 avx_fp32)
