# Any processor: a case that this one cannot run is skipped with the reason when it is run.
set(PRECISIONS fp8_weight fp8 bfloat16 fp16 fp32)
