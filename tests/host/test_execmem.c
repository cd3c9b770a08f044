/* Memory for generated code: one piece seen twice, never writable and executable at once, and where perf looks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "host/execmem.h"

/* The line of /proc/self/maps that holds p. */
static void maps_line(const void *p, char *line, int size)
{
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned long from, to;

	assert_non_null(f);
	while (fgets(line, size, f))
		if (sscanf(line, "%lx-%lx", &from, &to) == 2 && from <= (uintptr_t)p && (uintptr_t)p < to)
			break;
	assert_false(feof(f));
	fclose(f);
}

static void test_two_views(void **state)
{
	struct execmem m;
	char line[256];

	assert_int_equal(execmem_init(&m, 1 << 20, NULL), 0);
	memcpy(m.rw + 4096, "\xb8\x2a\x00\x00\x00\xc3", 6);	/* mov eax, 42; ret */
	assert_int_equal(((int (*)(void))(uintptr_t)(m.rx + 4096))(), 42);
	maps_line(m.rw, line, sizeof line);
	assert_non_null(strstr(line, " rw-s "));
	maps_line(m.rx, line, sizeof line);
	assert_non_null(strstr(line, " r-xs "));
	assert_non_null(strstr(line, "/dev/zero"));	/* what perf takes for anonymous memory */
	execmem_fini(&m);
	assert_null(m.rx);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_two_views) };
	return cmocka_run_group_tests(tests, NULL, NULL);
}
