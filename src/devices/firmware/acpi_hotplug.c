#include "devices/firmware/acpi_hotplug.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/stream.h"
#include "memory/map.h"

enum { UP = 0, DOWN = 4, EJECT = 8, STATUS = 12, LEN = 16 };

struct acpi_hotplug {
	pthread_mutex_t lock;	/* up, down */
	uint32_t up, down;
	struct acpi_hotplug_host host;
};

static uint64_t hotplug_read(void *opaque, uint64_t offset, unsigned size)
{
	struct acpi_hotplug *h = opaque;
	uint32_t v = 0;

	pthread_mutex_lock(&h->lock);
	if (size == 4)
		v = offset == UP ? h->up : offset == DOWN ? h->down : 0;
	pthread_mutex_unlock(&h->lock);
	return v;
}

static void hotplug_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct acpi_hotplug *h = opaque;
	uint32_t v = (uint32_t)value;

	if (size != 4)
		return;
	pthread_mutex_lock(&h->lock);
	h->up &= offset == UP ? ~v : ~0u;
	h->down &= offset == DOWN ? ~v : ~0u;
	pthread_mutex_unlock(&h->lock);
	for (unsigned slot = 0; offset == EJECT && slot < 32; slot++)
		if (v >> slot & 1)
			h->host.eject(h->host.opaque, slot);
	if (offset == STATUS)
		h->host.status(h->host.opaque, v >> 24 & 31, v >> 16 & 0xff, v & 0xffff);
}

static const struct io_ops hotplug_ops = { hotplug_read, hotplug_write, 1, 4 };

static void tell(struct acpi_hotplug *h, uint32_t *mask, unsigned slot)
{
	pthread_mutex_lock(&h->lock);
	*mask |= 1u << slot;
	pthread_mutex_unlock(&h->lock);
	h->host.gpe(h->host.opaque);
}

void acpi_hotplug_insert(struct acpi_hotplug *h, unsigned slot)
{
	tell(h, &h->up, slot);
}

void acpi_hotplug_request(struct acpi_hotplug *h, unsigned slot)
{
	tell(h, &h->down, slot);
}

void acpi_hotplug_cancel(struct acpi_hotplug *h, unsigned slot)
{
	pthread_mutex_lock(&h->lock);
	h->down &= ~(1u << slot);
	pthread_mutex_unlock(&h->lock);
}

struct acpi_hotplug *acpi_hotplug_new(struct map *m, const struct acpi_hotplug_host *host)
{
	struct acpi_hotplug *h = calloc(1, sizeof *h);

	if (!h)
		return NULL;
	pthread_mutex_init(&h->lock, NULL);
	h->host = *host;
	map_add_pio(m, ACPI_HOTPLUG_PORT, LEN, &hotplug_ops, h, "acpi-hotplug");
	return h;
}

void acpi_hotplug_free(struct acpi_hotplug *h)
{
	if (h)
		pthread_mutex_destroy(&h->lock);
	free(h);
}

void acpi_hotplug_save(struct acpi_hotplug *h, struct stream *s)
{
	size_t mark = stream_begin(s, "acpi-hotplug", 1);

	stream_put_u32(s, h->up);
	stream_put_u32(s, h->down);
	stream_end(s, mark);
}

void acpi_hotplug_load(struct acpi_hotplug *h, struct stream *s)
{
	size_t end;

	if (stream_enter(s, "acpi-hotplug", &end) != 1) {
		s->failed = true;
		return;
	}
	h->up = stream_get_u32(s);
	h->down = stream_get_u32(s);
	stream_leave(s, end);
}
