set(PRECISIONS fp8_weight fp8 bfloat16 fp16 fp32)
