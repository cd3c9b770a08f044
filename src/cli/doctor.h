/* What vixen doctor found out about one thing. */
#ifndef VIXEN_CLI_DOCTOR_H
#define VIXEN_CLI_DOCTOR_H

#include <stdio.h>

enum verdict { GOOD, LIMITED, MISSING };

struct finding {
	enum verdict verdict;
	char found[208];
	const char *todo;	/* what to do about it; NULL: nothing */
};

#define FOUND(f, v, t, ...) ((f)->verdict = (v), (f)->todo = (t), snprintf((f)->found, sizeof (f)->found, __VA_ARGS__))

/* doctor_cpu.c: can guests be given this CPU model? */
void check_v2(struct finding *f);
void check_v3(struct finding *f);

#endif
