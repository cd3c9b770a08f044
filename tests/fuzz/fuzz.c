/*
 * TARGET [SEED [COUNT [KIND]]]: of each kind of honest input, COUNT damaged ones.  The last lies in the file `last` of the
 * program's folder, which stays after a crash.
 * TARGET seeds DIRECTORY: writes the honest inputs, for libFuzzer.
 * TARGET one FILE...: these inputs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../block/disk.h"
#include "fuzz.h"

static void damaged(unsigned kind, uint8_t *q, const uint8_t *p, size_t len)
{
	memcpy(q, p, len);
	for (long n = 1 + random() % 6; n--;)
		fuzz_target.damage(kind, q, len);
	if (fuzz_target.sum && random() % 4)
		fuzz_target.sum(q, len);
	if (random() % 16 == 0)
		len = 1 + (size_t)random() % len;
	file_write("last", q, len);
	LLVMFuzzerTestOneInput(q, len);
}

static void kind_do(unsigned kind, unsigned long count, const uint8_t *p, size_t len)
{
	uint8_t *q = malloc(len);

	LLVMFuzzerTestOneInput(p, len);
	for (unsigned long i = 0; i < count; i++)
		damaged(kind, q, p, len);
	free(q);
}

static void seeds_write(const char *directory, unsigned kind, const uint8_t *p, size_t len)
{
	char path[4200];

	snprintf(path, sizeof(path), "%s/seed-%u", directory, kind);
	file_write(path, p, len);
}

static int one(char **paths)
{
	for (; *paths; paths++) {
		size_t len;
		uint8_t *p = file_read(*paths, &len);

		LLVMFuzzerTestOneInput(p, len);
		free(p);
	}
	return 0;
}

int main(int argc, char **argv)
{
	char dir[64], *to = argc > 2 && !strcmp(argv[1], "seeds") ? realpath(argv[2], NULL) : NULL;
	unsigned seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
	unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 100;
	uint8_t *p;
	size_t len;

	if (argc > 1 && !strcmp(argv[1], "one"))
		return one(argv + 2);
	if (fuzz_target.qemu && !have_qemu())
		return 77;
	go_to_folder(dir);
	srandom(seed);
	for (unsigned kind = 0; (p = fuzz_target.seed(kind, &len)); kind++) {
		if (to)
			seeds_write(to, kind, p, len);
		else if (argc < 4 || strtoul(argv[3], NULL, 10) == kind)
			kind_do(kind, count, p, len);
		free(p);
	}
	free(to);
	return shell("rm -r %s", dir);
}
