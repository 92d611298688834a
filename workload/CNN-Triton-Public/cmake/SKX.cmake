# AVX-512 without VNNI for int8.
set(PRECISIONS avx_fp32)
