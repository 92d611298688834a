# AVX2 only: neither VNNI for int8 nor bfloat16.
set(PRECISIONS avx_fp32)
