/* Life cycle of a virtio device (virtio 1.2, chapters 2.1 to 2.4 and 3); see virtio.h for the picture. */
#include "devices/virtio/virtio.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/stream.h"
#include "devices/virtio/device.h"
#include "host/loop.h"
#include "memory/map.h"

#define RING_FEATURES (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX | \
		       1ull << VIRTIO_RING_F_INDIRECT_DESC)

/* --- doorbells --- */

void doorbell_ring(struct vq *q)
{
	uint64_t one = 1;

	/* The exchange is a full barrier: whoever finds the flag set knows that the loop will still clear it
	 * and then look at the ring, which holds what the driver wrote before this doorbell. */
	if (!atomic_exchange(&q->kicked, true) && write(q->eventfd, &one, sizeof(one)) < 0)
		ASSERT(errno == EAGAIN);
}

static void doorbell_event(void *opaque, uint32_t events)
{
	struct vq *q = opaque;
	uint64_t count;

	if (read(q->eventfd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return;
	atomic_store(&q->kicked, false);	/* before the ring is read; partner: doorbell_ring() */
	if (q->v->live && q->ring.ready && !q->ring.broken)
		q->v->class->kick(q->v->opaque, q->index);
}

/* --- start: register file -> rings, on the loop thread --- */

static bool ring_start(struct virtio *v, struct vq *q)
{
	if (!virtq_start(&q->ring, v->map, q->size, q->desc, q->avail, q->used, v->features))
		return false;
	if (q->restored) {
		q->ring.avail_next = q->restored_avail;
		q->ring.used_next = q->ring.used_shown = q->restored_used;
		q->restored = false;
	}
	return true;
}

static void start_on_loop(void *opaque)
{
	struct virtio *v = opaque;
	bool good = true;

	pthread_mutex_lock(&v->lock);
	if (v->resetting) {	/* reset overtook us: stop_on_loop is queued behind */
		pthread_mutex_unlock(&v->lock);
		return;
	}
	v->features = v->accepted;
	for (unsigned i = 0; i < v->nqueues; i++)
		if (v->vq[i].enabled)
			good &= ring_start(v, &v->vq[i]);
	v->live = true;
	atomic_fetch_add(&v->in_flight, 1);
	pthread_mutex_unlock(&v->lock);
	if (!good)
		virtio_fail(v);
	if (v->class->start)
		v->class->start(v->opaque);
	for (unsigned i = 0; i < v->nqueues; i++)
		if (v->vq[i].ring.ready)
			v->class->kick(v->opaque, i);
}

void device_start(struct virtio *v)
{
	if (v->started)
		return;
	v->started = true;
	loop_post(v->loop, start_on_loop, v);
}

/* --- stop: completes when nothing is under way any more --- */

static void reset_complete(struct virtio *v)
{
	pthread_mutex_lock(&v->lock);
	transport_reset_registers(v);
	v->started = false;
	v->resetting = false;
	pthread_mutex_unlock(&v->lock);
	if (v->withdrawn && v->class->withdrawn)
		v->class->withdrawn(v->opaque);
}

void virtio_get(struct virtio *v)
{
	atomic_fetch_add(&v->in_flight, 1);
}

void virtio_put(struct virtio *v)
{
	/* A live device holds one itself, so only a stopping one gets to zero. */
	if (atomic_fetch_sub(&v->in_flight, 1) == 1)
		reset_complete(v);
}

static void stop_on_loop(void *opaque)
{
	struct virtio *v = opaque;

	if (!v->live) {
		reset_complete(v);
		return;
	}
	v->live = false;
	for (unsigned i = 0; i < v->nqueues; i++)
		virtq_stop(&v->vq[i].ring);
	if (v->class->stop)
		v->class->stop(v->opaque);
	virtio_put(v);
}

void device_reset(struct virtio *v)
{
	if (v->resetting)
		return;
	if (!v->started) {
		transport_reset_registers(v);
		return;
	}
	v->resetting = true;
	loop_post(v->loop, stop_on_loop, v);
}

/* --- what devices use --- */

struct virtq *virtio_queue(struct virtio *v, unsigned i)
{
	return &v->vq[i].ring;
}

bool virtio_has(const struct virtio *v, unsigned feature)
{
	return v->features >> feature & 1;
}

unsigned virtio_slot(const struct virtio *v)
{
	return pci_dev_slot(v->pci);
}

struct map *virtio_map(const struct virtio *v)
{
	return v->map;
}

void device_interrupt(struct virtio *v, unsigned vector, uint8_t isr_bit)
{
	if (pci_msix_enabled(v->pci)) {
		if (vector != NO_VECTOR)
			pci_msix_notify(v->pci, vector);
		return;
	}
	pthread_mutex_lock(&v->isr_lock);
	v->isr |= isr_bit;
	pci_intx(v->pci, true);
	pthread_mutex_unlock(&v->isr_lock);
}

void virtio_fail(struct virtio *v)
{
	unsigned was = atomic_fetch_or(&v->status, VIRTIO_CONFIG_S_NEEDS_RESET);

	if (!(was & VIRTIO_CONFIG_S_NEEDS_RESET) && (was & VIRTIO_CONFIG_S_DRIVER_OK))
		device_interrupt(v, atomic_load(&v->config_vector), VIRTIO_PCI_ISR_CONFIG);
}

void virtio_signal(struct virtio *v, unsigned queue)
{
	struct vq *q = &v->vq[queue];

	if (virtq_publish(&q->ring))
		device_interrupt(v, atomic_load(&q->vector), 1);
	if (q->ring.broken)
		virtio_fail(v);
}

void virtio_again(struct virtio *v, unsigned queue)
{
	doorbell_ring(&v->vq[queue]);
}

void virtio_config_get(struct virtio *v, unsigned offset, void *buf, unsigned len)
{
	ASSERT(offset + len <= v->config_len);
	pthread_mutex_lock(&v->lock);
	memcpy(buf, v->config + offset, len);
	pthread_mutex_unlock(&v->lock);
}

void virtio_config_set(struct virtio *v, unsigned offset, const void *buf, unsigned len, bool interrupt)
{
	ASSERT(offset + len <= v->config_len);
	pthread_mutex_lock(&v->lock);
	memcpy(v->config + offset, buf, len);
	if (v->config_seen)
		v->generation++;
	v->config_seen = false;
	pthread_mutex_unlock(&v->lock);
	if (interrupt && (atomic_load(&v->status) & VIRTIO_CONFIG_S_DRIVER_OK))
		device_interrupt(v, atomic_load(&v->config_vector), VIRTIO_PCI_ISR_CONFIG);
}

void virtio_offer(struct virtio *v, unsigned feature, bool offered)
{
	pthread_mutex_lock(&v->lock);
	v->offered = (v->offered & ~(1ull << feature)) | (uint64_t)offered << feature;
	pthread_mutex_unlock(&v->lock);
}

/* --- off the bus and on it --- */

void virtio_withdraw(struct virtio *v)
{
	bool idle;

	pci_dev_show(v->pci, false);
	pthread_mutex_lock(&v->lock);
	v->withdrawn = true;
	device_reset(v);
	idle = !v->resetting;
	pthread_mutex_unlock(&v->lock);
	if (idle && v->class->withdrawn)
		v->class->withdrawn(v->opaque);
}

void virtio_present(struct virtio *v, uint64_t features, const void *config)
{
	pthread_mutex_lock(&v->lock);
	v->withdrawn = false;
	v->offered = features | RING_FEATURES;
	memcpy(v->config, config, v->config_len);
	memcpy(v->config_initial, config, v->config_len);
	pthread_mutex_unlock(&v->lock);
	pci_dev_show(v->pci, true);
}

/* --- birth and death --- */

static int queues_init(struct virtio *v, struct error *e)
{
	v->vq = calloc(v->nqueues, sizeof(*v->vq));
	if (!v->vq)
		return error_errno(e, ENOMEM, NULL, "create %s", v->class->name);
	for (unsigned i = 0; i < v->nqueues; i++)
		v->vq[i].eventfd = -1;
	for (unsigned i = 0; i < v->nqueues; i++) {
		struct vq *q = &v->vq[i];

		q->v = v;
		q->index = i;
		q->eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		if (q->eventfd < 0)
			return error_errno(e, errno, "raise the limit of open files (ulimit -n)",
					   "create %s", v->class->name);
		q->watch = loop_fd_add(v->loop, q->eventfd, EPOLLIN, doorbell_event, q);
		if (!q->watch)
			return error_errno(e, ENOMEM, NULL, "create %s", v->class->name);
	}
	return 0;
}

static void virtio_destroy(struct virtio *v)
{
	for (unsigned i = 0; v->vq && i < v->nqueues; i++) {
		if (v->vq[i].watch)
			loop_fd_del(v->vq[i].watch);
		if (v->vq[i].eventfd >= 0)
			close(v->vq[i].eventfd);
	}
	free(v->vq);
	pthread_mutex_destroy(&v->lock);
	pthread_mutex_destroy(&v->isr_lock);
	free(v);
}

void device_free(void *opaque)
{
	struct virtio *v = opaque;

	if (v->class->free)
		v->class->free(v->opaque);
	virtio_destroy(v);
}

int virtio_new(struct virtio **out, const struct virtio_class *class, const struct virtio_params *p,
	       struct pci_bus *bus, struct map *m, struct loop *l, void *opaque, struct error *e)
{
	struct virtio *v = calloc(1, sizeof(*v));
	int ret;

	ASSERT(p->queues && p->queues <= VIRTIO_QUEUES_MAX && p->config_len <= VIRTIO_CONFIG_MAX);
	if (!v)
		return error_errno(e, ENOMEM, NULL, "create %s", class->name);
	v->class = class;
	v->opaque = opaque;
	v->map = m;
	v->loop = l;
	v->nqueues = p->queues;
	v->offered = p->features | RING_FEATURES;
	v->config_len = p->config_len;
	if (p->config_len) {
		memcpy(v->config, p->config, p->config_len);
		memcpy(v->config_initial, p->config, p->config_len);
	}
	if (p->config_wmask)
		memcpy(v->config_wmask, p->config_wmask, p->config_len);
	pthread_mutex_init(&v->lock, NULL);
	pthread_mutex_init(&v->isr_lock, NULL);
	ret = queues_init(v, e);
	if (ret)
		goto fail;
	ret = transport_init(v, bus);
	if (ret) {
		error_set(e, -ret, "use fewer devices", "add a device", "all PCI slots are taken");
		goto fail;
	}
	*out = v;
	return 0;
fail:
	virtio_destroy(v);
	return ret;
}

/* --- saved state: nothing is under way --- */

void device_save(void *opaque, struct stream *s)
{
	struct virtio *v = opaque;
	size_t mark = stream_begin(s, v->class->name, 1);

	stream_put_u8(s, (uint8_t)atomic_load(&v->status));
	stream_put_u64(s, v->accepted);
	stream_put_u32(s, v->feature_select);
	stream_put_u32(s, v->driver_feature_select);
	stream_put_u16(s, v->queue_select);
	stream_put_u16(s, (uint16_t)atomic_load(&v->config_vector));
	stream_put_u8(s, v->generation);
	stream_put_u8(s, v->isr);
	stream_put(s, v->config, sizeof(v->config));
	stream_put_u8(s, (uint8_t)v->nqueues);
	for (unsigned i = 0; i < v->nqueues; i++) {
		const struct vq *q = &v->vq[i];

		stream_put_u16(s, q->size);
		stream_put_u8(s, q->enabled);
		stream_put_u64(s, q->desc);
		stream_put_u64(s, q->avail);
		stream_put_u64(s, q->used);
		stream_put_u16(s, (uint16_t)atomic_load(&q->vector));
		stream_put_u16(s, q->ring.avail_next);
		stream_put_u16(s, q->ring.used_next);
	}
	if (v->class->save)
		v->class->save(v->opaque, s);
	stream_end(s, mark);
}

static void queue_load(struct vq *q, struct stream *s)
{
	q->size = stream_get_u16(s);
	q->enabled = stream_get_u8(s) & 1;
	q->desc = stream_get_u64(s);
	q->avail = stream_get_u64(s);
	q->used = stream_get_u64(s);
	atomic_store(&q->vector, stream_get_u16(s));
	q->restored_avail = stream_get_u16(s);
	q->restored_used = stream_get_u16(s);
	q->restored = q->enabled;
}

int device_load(void *opaque, struct stream *s)
{
	struct virtio *v = opaque;
	unsigned status;
	size_t end;

	if (v->started || stream_enter(s, v->class->name, &end) != 1)
		return -EINVAL;
	pthread_mutex_lock(&v->lock);
	status = stream_get_u8(s);
	v->accepted = stream_get_u64(s) & v->offered;
	v->feature_select = stream_get_u32(s);
	v->driver_feature_select = stream_get_u32(s);
	v->queue_select = stream_get_u16(s);
	atomic_store(&v->config_vector, stream_get_u16(s));
	v->generation = stream_get_u8(s);
	v->isr = stream_get_u8(s);
	stream_get(s, v->config, sizeof(v->config));
	if (stream_get_u8(s) != v->nqueues)
		s->failed = true;
	for (unsigned i = 0; i < v->nqueues && !s->failed; i++)
		queue_load(&v->vq[i], s);
	if (v->class->load && !s->failed && v->class->load(v->opaque, s) < 0)
		s->failed = true;
	stream_leave(s, end);
	if (!s->failed) {
		atomic_store(&v->status, status);
		if (status & VIRTIO_CONFIG_S_DRIVER_OK)
			device_start(v);
	}
	pthread_mutex_unlock(&v->lock);
	return s->failed ? -EINVAL : 0;
}
