# Any processor: a case that this one cannot run is skipped with the reason when it is run.
set(PRECISIONS amx_bfloat16 amx_int8 amx_bfloat32 avx_bfloat16 avx_int8 avx_fp32)
