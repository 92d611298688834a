set(PRECISIONS avx_int8 avx_fp32)
set(SGX_PRECISIONS avx_int8)
