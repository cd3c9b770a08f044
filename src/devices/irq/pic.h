/* The two 8259A interrupt controllers, cascaded on IRQ 2, with ELCR (8259A data sheet; ICH9 5.9, 13.4). */
#ifndef VIXEN_DEVICES_IRQ_PIC_H
#define VIXEN_DEVICES_IRQ_PIC_H

#include <stdbool.h>
#include <stdint.h>

struct map;
struct pic;

/* output is told when INTR may have risen; called with the 8259's lock held: it must not call back. */
struct pic *pic_new(struct map *m, void (*output)(void *opaque), void *opaque);
void pic_free(struct pic *p);
void pic_reset(struct pic *p);
void pic_set(void *pic, unsigned irq, bool level);	/* irq_line sink, 0..15 */
bool pic_pending(struct pic *p);
int pic_ack(struct pic *p);				/* vector; a spurious one if it went away */

#endif
