/* What libFuzzer is given of a target. */
#include "fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *p, size_t len, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *p, size_t len, size_t max, unsigned seed);

/* Most changes shall get past checksums. */
size_t LLVMFuzzerCustomMutator(uint8_t *p, size_t len, size_t max, unsigned seed)
{
	len = LLVMFuzzerMutate(p, len, max);
	if (fuzz_target.sum && seed % 4)
		fuzz_target.sum(p, len);
	return len;
}
