/* Giving a new qcow2 image all its clusters at once; nothing else is under way on it. */
#include <errno.h>

#include "block/qcow2/qcow2.h"

/* Clusters for a stretch of one slice; returns how many, or -errno. */
static int64_t stretch(struct qcow2 *q, uint64_t guest, enum block_preallocate how)
{
	uint64_t end = l2_slice_end(q, guest), first, got = 0;
	struct table *t;
	int ret;

	end = end < q->n->size_bytes ? end : q->n->size_bytes;
	ret = l2_get_writable(q, guest, &t);
	if (ret)
		return ret;
	ret = clusters_alloc(q, clusters_for(q, end - guest), false, &first, &got);
	if (!ret) {
		ret = node_co_preallocate(q->data, first << q->cluster_bits, got << q->cluster_bits, how);
		if (ret)
			clusters_unref(q, first, got);
	}
	for (uint64_t i = 0; i < got && !ret; i++)
		mapping_set(q, t, guest + (i << q->cluster_bits),
			    &(struct mapping){ .host = (first + i) << q->cluster_bits, .copied = true,
					       .alloc = sub_mask(q) });
	table_put(q, t);
	return ret ? ret : (int64_t)got;
}

int qcow2_preallocate(struct node *n, enum block_preallocate how, struct error *e)
{
	struct qcow2 *q = n->impl;
	int64_t got = qcow2_begin_change(q);

	for (uint64_t at = 0; at < n->size_bytes && got >= 0; at += (uint64_t)got << q->cluster_bits) {
		got = tables_crowded(q) ? qcow2_commit(q) : 0;
		if (!got)
			got = stretch(q, at, how);
	}
	if (got >= 0)
		got = qcow2_commit(q);
	return got < 0 ? error_errno(e, (int)-got, got == -EOPNOTSUPP ? "use --preallocation full" :
				     "is there space on the host's disk?", "preallocate disk '%s'", n->path) : 0;
}
