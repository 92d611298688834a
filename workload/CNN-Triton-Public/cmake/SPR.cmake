set(PRECISIONS amx_bfloat16 amx_int8 amx_bfloat32 avx_int8 avx_bfloat16 avx_fp32)
