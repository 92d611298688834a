# No bfloat16.
set(PRECISIONS fp8_weight fp8 fp16 fp32)
