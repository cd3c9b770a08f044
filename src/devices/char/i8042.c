/*
 *              port 64h commands                      port 60h data
 *                    |                                      |
 *   controller: RAM, output port, tests          keyboard: FAh, then its answer
 *                    |                                      |
 *                    +---------> output queue <-------------+ (set 2 -> 1 on its way when CTR.XLATE)
 *                                     |  OBF, IRQ 1
 *                                  port 60h
 */
#include "devices/char/i8042.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "memory/map.h"

/* Status, port 64h */
#define STATUS_OBF 0x01
#define STATUS_SYSTEM 0x04
#define STATUS_COMMAND 0x08
#define STATUS_UNLOCKED 0x10
/* Command byte: RAM byte 0 */
#define CTR_INT 0x01
#define CTR_SYSTEM 0x04
#define CTR_KBD_OFF 0x10
#define CTR_AUX_OFF 0x20
#define CTR_XLATE 0x40
/* Output port */
#define OUT_RESET_N 0x01
#define OUT_A20 0x02

#define QUEUE_SIZE 16u
#define KEYS_ROOM 12u		/* key strokes leave room for the answers to commands */

struct entry { uint8_t byte; bool keyboard; };

struct i8042 {
	pthread_mutex_t lock;
	struct irq_line irq;
	struct i8042_host host;
	uint8_t ram[32], outport, port92;
	uint8_t command;		/* a controller command that waits for its byte at 60h, or 0 */
	bool last_was_command;
	uint8_t kbd_command;		/* likewise one of the keyboard's */
	uint8_t scan_set, last_sent;
	bool scanning;
	struct entry queue[QUEUE_SIZE];
	unsigned head, count;
};

/* Scan code set 2 to set 1, as the controller translates; set 2 is dense up to 84h. */
static const uint8_t set1[0x85] = {
	0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
	0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
	0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
	0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
	0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
	0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
	0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
	0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
	0x00, 0x00, 0x00, 0x41, 0x54,
};

/* A byte of the keyboard's waits while its clock is held off; the controller's own never do. */
static bool readable(const struct i8042 *k)
{
	return k->count && !(k->queue[k->head].keyboard && (k->ram[0] & CTR_KBD_OFF));
}

static void irq_update(struct i8042 *k)
{
	irq_set(&k->irq, readable(k) && (k->ram[0] & CTR_INT));
}

static void put(struct i8042 *k, uint8_t byte, bool keyboard)
{
	if (k->count < QUEUE_SIZE)
		k->queue[(k->head + k->count++) % QUEUE_SIZE] = (struct entry){ byte, keyboard };
}

/* The controller answers at once, before what the keyboard has queued. */
static void put_first(struct i8042 *k, uint8_t byte)
{
	if (k->count == QUEUE_SIZE)
		k->count--;
	k->head = (k->head + QUEUE_SIZE - 1) % QUEUE_SIZE;
	k->queue[k->head] = (struct entry){ byte, false };
	k->count++;
}

static uint8_t data_read(struct i8042 *k)
{
	if (!readable(k))
		return k->last_sent;
	struct entry e = k->queue[k->head];
	k->head = (k->head + 1) % QUEUE_SIZE;
	k->count--;
	k->last_sent = e.byte;
	if (e.keyboard && (k->ram[0] & CTR_XLATE) && e.byte < sizeof set1)
		k->last_sent = set1[e.byte];
	irq_set(&k->irq, false);		/* each byte is an edge of its own */
	return k->last_sent;
}

/* --- keyboard --- */

static void kbd_defaults(struct i8042 *k)
{
	k->scan_set = 2;
	k->kbd_command = 0;
	k->scanning = true;
}

/* The parameter of ED (lamps), F0 (scan set), F3 (repeat rate) */
static void kbd_parameter(struct i8042 *k, uint8_t v)
{
	uint8_t command = k->kbd_command;
	k->kbd_command = 0;
	put(k, 0xfa, true);
	if (command == 0xf0 && !v)
		put(k, k->scan_set, true);
	else if (command == 0xf0 && v <= 3)
		k->scan_set = v;
}

static void kbd_write(struct i8042 *k, uint8_t v)
{
	if (k->kbd_command && v < 0xed) {
		kbd_parameter(k, v);
		return;
	}
	k->kbd_command = 0;
	switch (v) {
	case 0xed: case 0xf0: case 0xf3: k->kbd_command = v; break;
	case 0xee: put(k, 0xee, true); return;
	case 0xf2:
		put(k, 0xfa, true);
		put(k, 0xab, true);
		put(k, 0x83, true);
		return;
	case 0xf4: k->scanning = true; break;
	case 0xf5: kbd_defaults(k); k->scanning = false; break;
	case 0xf6: kbd_defaults(k); break;
	case 0xf7: case 0xf8: case 0xf9: case 0xfa: break;
	case 0xfe: put(k, k->last_sent, true); return;
	case 0xff:
		kbd_defaults(k);
		k->count = 0;
		put(k, 0xfa, true);
		put(k, 0xaa, true);
		return;
	default: put(k, 0xfe, true); return;
	}
	put(k, 0xfa, true);
}

/* --- controller --- */

/* Returns true when the guest asks for a reset. */
static bool outport_write(struct i8042 *k, uint8_t v)
{
	k->outport = v | OUT_RESET_N;
	return !(v & OUT_RESET_N);
}

static bool command_parameter(struct i8042 *k, uint8_t v)
{
	uint8_t command = k->command;
	k->command = 0;
	if (command >= 0x60 && command < 0x80)
		k->ram[command - 0x60] = v;
	else if (command == 0xd1)
		return outport_write(k, v);
	else if (command == 0xd2)
		put_first(k, v);
	else if (command == 0xd3)
		put_first(k, v);	/* no second channel that could mark it: drivers see that there is no mouse */
	return false;
}

static bool command_write(struct i8042 *k, uint8_t v)
{
	k->command = 0;
	if (v >= 0x20 && v < 0x40)
		put_first(k, k->ram[v - 0x20]);
	else if ((v >= 0x60 && v < 0x80) || (v >= 0xd1 && v <= 0xd4))
		k->command = v;
	switch (v) {
	case 0xa7: k->ram[0] |= CTR_AUX_OFF; break;
	case 0xa8: k->ram[0] &= (uint8_t)~CTR_AUX_OFF; break;
	case 0xa9: put_first(k, 1); break;		/* mouse clock stuck low: none there */
	case 0xaa:
		k->ram[0] |= CTR_SYSTEM;
		put_first(k, 0x55);
		break;
	case 0xab: put_first(k, 0); break;
	case 0xad: k->ram[0] |= CTR_KBD_OFF; break;
	case 0xae: k->ram[0] &= (uint8_t)~CTR_KBD_OFF; break;
	case 0xc0: put_first(k, 0xa0); break;		/* keyboard not locked, no jumpers */
	case 0xd0: put_first(k, (uint8_t)(k->outport | (readable(k) ? 0x10 : 0))); break;
	case 0xdd: k->outport &= (uint8_t)~OUT_A20; break;
	case 0xdf: k->outport |= OUT_A20; break;
	default: break;
	}
	return v >= 0xf0 && !(v & OUT_RESET_N);		/* pulses the output port's lines that are 0 */
}

static uint64_t io_read(void *opaque, bool status)
{
	struct i8042 *k = opaque;
	pthread_mutex_lock(&k->lock);
	uint8_t v;
	if (status)
		v = STATUS_UNLOCKED | (k->ram[0] & CTR_SYSTEM ? STATUS_SYSTEM : 0) |
		    (k->last_was_command ? STATUS_COMMAND : 0) | (readable(k) ? STATUS_OBF : 0);
	else
		v = data_read(k);
	irq_update(k);
	pthread_mutex_unlock(&k->lock);
	return v;
}

static void io_write(void *opaque, bool command, uint8_t v)
{
	struct i8042 *k = opaque;
	bool reset = false;
	pthread_mutex_lock(&k->lock);
	k->last_was_command = command;
	if (command) {
		reset = command_write(k, v);
	} else if (k->command) {
		reset = command_parameter(k, v);
	} else {
		k->ram[0] &= (uint8_t)~CTR_KBD_OFF;	/* talking to the keyboard turns it on */
		kbd_write(k, v);
	}
	irq_update(k);
	pthread_mutex_unlock(&k->lock);
	if (reset)
		k->host.reset(k->host.opaque);
}

static uint64_t data_io_read(void *opaque, uint64_t offset, unsigned size)
{
	(void)offset, (void)size;
	return io_read(opaque, false);
}
static void data_io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	(void)offset, (void)size;
	io_write(opaque, false, (uint8_t)value);
}
static uint64_t command_io_read(void *opaque, uint64_t offset, unsigned size)
{
	(void)offset, (void)size;
	return io_read(opaque, true);
}
static void command_io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	(void)offset, (void)size;
	io_write(opaque, true, (uint8_t)value);
}

/* Port 92h: bit 0 rising resets, bit 1 is A20. */
static uint64_t port92_read(void *opaque, uint64_t offset, unsigned size)
{
	struct i8042 *k = opaque;
	(void)offset, (void)size;
	pthread_mutex_lock(&k->lock);
	uint8_t v = k->port92;
	pthread_mutex_unlock(&k->lock);
	return v;
}
static void port92_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct i8042 *k = opaque;
	(void)offset, (void)size;
	pthread_mutex_lock(&k->lock);
	bool reset = (value & 1) && !(k->port92 & 1);
	k->port92 = value & 3;
	pthread_mutex_unlock(&k->lock);
	if (reset)
		k->host.reset(k->host.opaque);
}

static const struct io_ops data_ops = { data_io_read, data_io_write, 1, 1 };
static const struct io_ops command_ops = { command_io_read, command_io_write, 1, 1 };
static const struct io_ops port92_ops = { port92_read, port92_write, 1, 1 };

bool i8042_key(struct i8042 *k, uint8_t code)
{
	pthread_mutex_lock(&k->lock);
	bool taken = k->scanning && k->count < KEYS_ROOM;
	if (taken) {
		put(k, code, true);
		irq_update(k);
	}
	pthread_mutex_unlock(&k->lock);
	return taken;
}

void i8042_reset(struct i8042 *k)
{
	pthread_mutex_lock(&k->lock);
	memset(k->ram, 0, sizeof k->ram);
	k->ram[0] = CTR_INT | CTR_SYSTEM | CTR_XLATE | CTR_AUX_OFF;	/* as firmware leaves it */
	k->outport = OUT_RESET_N | OUT_A20;
	k->port92 = 2;
	k->command = k->last_sent = 0;
	k->last_was_command = false;
	k->count = 0;
	kbd_defaults(k);
	irq_update(k);
	pthread_mutex_unlock(&k->lock);
}

struct i8042 *i8042_new(struct map *m, struct irq_line irq1, const struct i8042_host *host)
{
	struct i8042 *k = calloc(1, sizeof *k);
	ASSERT(k);
	pthread_mutex_init(&k->lock, NULL);
	k->irq = irq1;
	k->host = *host;
	i8042_reset(k);
	map_add_pio(m, 0x60, 1, &data_ops, k, "i8042-data");
	map_add_pio(m, 0x64, 1, &command_ops, k, "i8042-command");
	map_add_pio(m, 0x92, 1, &port92_ops, k, "port92");
	return k;
}

void i8042_free(struct i8042 *k)
{
	if (k)
		pthread_mutex_destroy(&k->lock);
	free(k);
}
