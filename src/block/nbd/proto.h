/*
 * The NBD protocol on the wire; big-endian, no padding.  Sections of proto.md are named at each part.
 *
 *	server: greeting ─▶ client: flags ─▶ options and their replies ... ─▶ GO or EXPORT_NAME ─▶ requests and replies
 */
#ifndef VIXEN_BLOCK_NBD_PROTO_H
#define VIXEN_BLOCK_NBD_PROTO_H

#include <stdint.h>

/* --- "Newstyle negotiation" --- */

#define NBD_MAGIC 0x4e42444d41474943ull		/* "NBDMAGIC" */
#define NBD_OPTION_MAGIC 0x49484156454f5054ull	/* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC 0x3e889045565a9ull
#define NBD_NAME_MAX 4096u			/* "Values": strings */
#define NBD_DEFAULT_PORT "10809"
#define NBD_CONTEXT_ALLOCATION "base:allocation"
#define NBD_CONTEXT_DEPTH "qemu:allocation-depth"	/* QEMU's docs/interop/nbd.txt has this and the next */
#define NBD_CONTEXT_BITMAP "qemu:dirty-bitmap:"		/* and a bitmap's name */

enum nbd_handshake_flags { NBD_FIXED_NEWSTYLE = 1, NBD_NO_ZEROES = 2 };	/* the same bits from both sides */

struct nbd_greeting { uint64_t magic, option_magic; uint16_t flags; } __attribute__((packed));
struct nbd_option { uint64_t magic; uint32_t option, len; } __attribute__((packed));
struct nbd_option_reply { uint64_t magic; uint32_t option, type, len; } __attribute__((packed));
/* The answer to EXPORT_NAME; without NO_ZEROES all of it. */
struct nbd_export_reply { uint64_t size; uint16_t flags; uint8_t zeroes[124]; } __attribute__((packed));
#define NBD_EXPORT_REPLY_SHORT 10u

enum nbd_options {		/* "Option types" */
	NBD_OPT_EXPORT_NAME = 1, NBD_OPT_ABORT, NBD_OPT_LIST, NBD_OPT_PEEK_EXPORT, NBD_OPT_STARTTLS, NBD_OPT_INFO,
	NBD_OPT_GO, NBD_OPT_STRUCTURED_REPLY, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT,
};

enum nbd_option_replies {	/* "Option reply types" */
	NBD_REP_ACK = 1, NBD_REP_SERVER, NBD_REP_INFO, NBD_REP_META_CONTEXT,
};
#define NBD_REP_ERROR 0x80000000u		/* all errors have this bit */
#define NBD_REP_ERR_UNSUP (NBD_REP_ERROR | 1)
#define NBD_REP_ERR_POLICY (NBD_REP_ERROR | 2)
#define NBD_REP_ERR_INVALID (NBD_REP_ERROR | 3)
#define NBD_REP_ERR_TLS_REQD (NBD_REP_ERROR | 5)
#define NBD_REP_ERR_UNKNOWN (NBD_REP_ERROR | 6)
#define NBD_REP_ERR_TOO_BIG (NBD_REP_ERROR | 9)

enum nbd_infos { NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE };

struct nbd_info_export { uint16_t type; uint64_t size; uint16_t flags; } __attribute__((packed));
struct nbd_info_block_size { uint16_t type; uint32_t min, preferred, max; } __attribute__((packed));

enum nbd_export_flags {		/* "Transmission flags" */
	NBD_HAS_FLAGS = 1 << 0,
	NBD_READ_ONLY = 1 << 1,
	NBD_SEND_FLUSH = 1 << 2,
	NBD_SEND_FUA = 1 << 3,
	NBD_SEND_TRIM = 1 << 5,
	NBD_SEND_WRITE_ZEROES = 1 << 6,
	NBD_SEND_DF = 1 << 7,
	NBD_CAN_MULTI_CONN = 1 << 8,
	NBD_SEND_CACHE = 1 << 10,
	NBD_SEND_FAST_ZERO = 1 << 11,
};

/* --- "Transmission" --- */

#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_SIMPLE_MAGIC 0x67446698u
#define NBD_CHUNK_MAGIC 0x668e33efu
#define NBD_PAYLOAD_MAX (32u << 20)		/* "Size constraints": what every server takes */

struct nbd_request {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie, offset;
	uint32_t len;
} __attribute__((packed));
_Static_assert(sizeof(struct nbd_request) == 28, "on the wire");

struct nbd_simple { uint32_t magic, error; uint64_t cookie; } __attribute__((packed));
struct nbd_chunk { uint32_t magic; uint16_t flags, type; uint64_t cookie; uint32_t len; } __attribute__((packed));
struct nbd_hole { uint64_t offset; uint32_t len; } __attribute__((packed));
struct nbd_extent { uint32_t len, flags; } __attribute__((packed));
_Static_assert(sizeof(struct nbd_simple) == 16 && sizeof(struct nbd_chunk) == 20, "on the wire");

enum nbd_commands {
	NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_DISC, NBD_CMD_FLUSH, NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES,
	NBD_CMD_BLOCK_STATUS, NBD_COMMANDS
};

enum nbd_command_flags {
	NBD_CMD_FUA = 1, NBD_CMD_NO_HOLE = 2, NBD_CMD_DF = 4, NBD_CMD_REQ_ONE = 8, NBD_CMD_FAST_ZERO = 16,
};

enum nbd_chunk_flags { NBD_CHUNK_DONE = 1 };
enum nbd_chunks {		/* "Structured reply types" */
	NBD_CHUNK_NONE = 0, NBD_CHUNK_DATA = 1, NBD_CHUNK_HOLE = 2, NBD_CHUNK_STATUS = 5,
	NBD_CHUNK_ERROR_BIT = 0x8000, NBD_CHUNK_ERROR = 0x8001, NBD_CHUNK_ERROR_OFFSET = 0x8002,
};

enum nbd_extent_flags { NBD_STATE_HOLE = 1, NBD_STATE_ZERO = 2 };	/* of base:allocation */
#define NBD_STATE_DIRTY 1u						/* of a bitmap */

/* "Error values": Linux' numbers, but only these. */
static inline uint32_t nbd_error_of(int err)
{
	switch (err) {
	case 0: return 0;
	case 1 /* EPERM */: case 30 /* EROFS */: return 1;
	case 12: case 22: case 28: case 75: case 95: case 108: return (uint32_t)err;
	case 27 /* EFBIG */: case 122 /* EDQUOT */: return 28;
	default: return 5 /* EIO */;
	}
}

/* What a server said as -errno; what is not defined counts as EINVAL (proto.md). */
static inline int nbd_errno_of(uint32_t error)
{
	switch (error) {
	case 0: return 0;
	case 1: case 5: case 12: case 22: case 28: case 75: case 95: return -(int)error;
	case 108: return -5;
	default: return -22;
	}
}

#endif
