/*
 * Fuzz targets.  Each is a file with LLVMFuzzerTestOneInput() and a fuzz_target, and is built twice:
 *
 *	with fuzz.c		a program of its own: honest inputs, damaged at random, a seed and a count say which
 *	with libfuzzer.c	by clang, in a build with -fsanitize=fuzzer-no-link: tests/nightly libfuzzer
 *
 * Nothing may crash, hang, or take memory without bound; a sanitizer build sees reads beyond bounds.
 */
#ifndef VIXEN_TESTS_FUZZ_H
#define VIXEN_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fuzz_target {
	/* An honest input of that kind; malloc'd, the same for the same random().  NULL: there are no more kinds.  In a
	 * folder of the program's own. */
	uint8_t *(*seed)(unsigned kind, size_t *len);
	void (*damage)(unsigned kind, uint8_t *p, size_t len);	/* in place, a little of it; len is 16 at least */
	void (*sum)(uint8_t *p, size_t len);	/* makes checksums right again; NULL: there are none */
	bool qemu;				/* seed() needs QEMU's tools */
};
extern const struct fuzz_target fuzz_target;

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

/* Changes something at `at`, in the byte order of the format. */
void fuzz_change(uint8_t *p, size_t len, size_t at, bool big_endian);
int fuzz_memfd(const uint8_t *bytes, size_t len);	/* a file with these bytes */

#endif
