#include "cli/terminal.h"

#include <unistd.h>

#define CTRL_A 0x01

void terminal_take(struct terminal *t)
{
	*t = (struct terminal){ 0 };
	if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &t->saved))
		return;
	struct termios raw = t->saved;
	cfmakeraw(&raw);
	raw.c_oflag |= OPOST;		/* our own messages still get their carriage return */
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	t->raw = !tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
}

void terminal_give_back(struct terminal *t)
{
	if (!t->raw)
		return;
	tcsetattr(STDIN_FILENO, TCSADRAIN, &t->saved);
	t->raw = false;
}

enum escape_action escape_filter(struct escape *s, const uint8_t *in, size_t n, size_t *used, uint8_t *out,
				 size_t *nout)
{
	size_t o = 0;
	enum escape_action action = ESCAPE_NONE;
	size_t i = 0;
	while (i < n && action == ESCAPE_NONE) {
		uint8_t b = in[i++];
		if (!s->armed) {
			if (b == CTRL_A)
				s->armed = true;
			else
				out[o++] = b;
			continue;
		}
		s->armed = false;
		switch (b) {
		case 'x': case 'X': action = ESCAPE_QUIT; break;
		case 'h': case 'H': case '?': action = ESCAPE_HELP; break;
		case 'p': case 'P': action = ESCAPE_POWER; break;
		case CTRL_A: out[o++] = b; break;
		default:		/* not ours: both bytes are the guest's */
			out[o++] = CTRL_A;
			out[o++] = b;
		}
	}
	*used = i;
	*nout = o;
	return action;
}
