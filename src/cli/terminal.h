/* The user's terminal: raw while a guest owns it, as it was before on every way out. */
#ifndef VIXEN_CLI_TERMINAL_H
#define VIXEN_CLI_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <termios.h>

struct terminal {
	bool raw;
	struct termios saved;
};

/* Raw if stdin is a terminal; otherwise nothing happens. */
void terminal_take(struct terminal *t);
void terminal_give_back(struct terminal *t);	/* may be called again */

/* Ctrl-A in the user's input:  plain -- Ctrl-A --> armed -- x: quit, h: help, p: power button, Ctrl-A: itself */
enum escape_action { ESCAPE_NONE, ESCAPE_QUIT, ESCAPE_HELP, ESCAPE_POWER };
struct escape { bool armed; };
/* Copies what is for the guest to out (at least n + 1 bytes), its length to *nout. Stops behind an action:
 * *used tells how far it came. */
enum escape_action escape_filter(struct escape *s, const uint8_t *in, size_t n, size_t *used, uint8_t *out,
				 size_t *nout);

#endif
