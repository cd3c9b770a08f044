/* An interrupt line: a level that its owner sets and a sink that hears of it. */
#ifndef VIXEN_DEVICES_IRQ_LINE_H
#define VIXEN_DEVICES_IRQ_LINE_H

#include <stdbool.h>
#include <stdint.h>

/* Passed by value into devices. set is safe from any thread and must not call back into the caller. */
struct irq_line {
	void (*set)(void *opaque, unsigned pin, bool level);
	void *opaque;
	unsigned pin;
};
static inline void irq_set(const struct irq_line *l, bool level)
{
	if (l->set)
		l->set(l->opaque, l->pin, level);
}

/* Where message-signalled interrupts go (LAPICs, or KVM). */
struct msi_sink {
	void (*send)(void *opaque, uint64_t gpa, uint32_t data);
	void *opaque;
};

#endif
