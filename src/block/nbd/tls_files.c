#include "block/nbd/tls_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/handover.h"
#include "block/luks/secret.h"

#define PART_MAX (16u << 20)

/* --- memory --- */

static int part_room(struct tls_files *f, enum tls_part p, uint64_t len)
{
	uint8_t *bytes = len < PART_MAX ? secret_memory(len + 1) : NULL;

	if (!bytes)
		return len < PART_MAX ? -ENOMEM : -EFBIG;
	if (f->bytes[p]) {
		memcpy(bytes, f->bytes[p], f->len[p]);
		secret_memory_free(f->bytes[p], f->len[p] + 1);
	}
	f->bytes[p] = bytes;
	return 0;
}

void tls_files_free(struct tls_files *f)
{
	for (int p = 0; p < TLS_PARTS; p++)
		if (f->bytes[p])
			secret_memory_free(f->bytes[p], f->len[p] + 1);
	*f = (struct tls_files){ 0 };
}

/* Appended, with a newline after it. */
static int part_add(struct tls_files *f, enum tls_part p, int fd)
{
	uint64_t at = f->len[p];
	off_t size = lseek(fd, 0, SEEK_END);
	ssize_t n;
	int ret = size < 0 ? -errno : part_room(f, p, at + (uint64_t)size + 1);

	if (ret)
		return ret;
	n = pread(fd, f->bytes[p] + at, (size_t)size, 0);
	f->len[p] = (uint32_t)(at + (uint64_t)size + 1);	/* as large as the room */
	if (n < 0)
		return -errno;
	f->bytes[p][at + (uint64_t)n] = '\n';
	return 0;
}

static int file_add(struct tls_files *f, enum tls_part p, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK), ret = fd < 0 ? -errno : part_add(f, p, fd);

	if (fd >= 0)
		close(fd);
	return ret;
}

/* --- the host's store of CAs: one file, or a folder of files named by hashes, such as 1234abcd.0 --- */

static bool hashed(const char *name)
{
	return strspn(name, "0123456789abcdef") == 8 && name[8] == '.';
}

static int store_folder(struct tls_files *f, const char *path)
{
	DIR *d = opendir(path);
	char full[PATH_MAX];
	int ret = 0;

	for (struct dirent *i; d && !ret && (i = readdir(d));)
		if (hashed(i->d_name) && snprintf(full, sizeof(full), "%s/%s", path, i->d_name) < PATH_MAX)
			ret = file_add(f, TLS_CA, full);
	if (d)
		closedir(d);
	return ret;
}

static int store_read(struct tls_files *f)
{
	const char *file = getenv(X509_get_default_cert_file_env()), *dir = getenv(X509_get_default_cert_dir_env());
	int ret = file_add(f, TLS_CA, file ? file : X509_get_default_cert_file());

	return ret && ret != -ENOENT ? ret : store_folder(f, dir ? dir : X509_get_default_cert_dir());
}

/* --- files with fixed names --- */

static bool path_of(char out[PATH_MAX], const char *dir, const char *name)
{
	return snprintf(out, PATH_MAX, "%s/%s", dir, name) < PATH_MAX;
}

/* Certificate and key of this side; for a client they may be missing. */
static int own_read(struct tls_files *f, const struct nbd_tls_options *o, struct error *e)
{
	char cert[PATH_MAX], key[PATH_MAX];
	int ret;

	if (!path_of(cert, o->certificates, o->server ? "server-cert.pem" : "client-cert.pem") ||
	    !path_of(key, o->certificates, o->server ? "server-key.pem" : "client-key.pem"))
		return error_errno(e, ENAMETOOLONG, NULL, "read the certificates in '%s'", o->certificates);
	if (!o->server && access(cert, F_OK))
		return 0;
	ret = file_add(f, TLS_CERT, cert);
	if (!ret)
		ret = file_add(f, TLS_KEY, key);
	return ret ? error_errno(e, -ret, "both have to be there, as PEM, and readable",
				 "read the certificate '%s' and its key", cert) : 0;
}

static int authorities_read(struct tls_files *f, const char *dir, struct error *e)
{
	char ca[PATH_MAX];
	int ret = path_of(ca, dir, "ca-cert.pem") ? file_add(f, TLS_CA, ca) : -ENAMETOOLONG;

	return ret ? error_errno(e, -ret, "check the directory with the certificates",
				 "read the authority's certificate '%s'", ca) : 0;
}

int tls_files_read(struct tls_files *f, const struct nbd_tls_options *o, bool store, struct error *e)
{
	int ret = 0;

	*f = (struct tls_files){ 0 };
	if (o->psk_file) {
		ret = file_add(f, TLS_PSK, o->psk_file);
		if (ret)
			error_errno(e, -ret, "check the path and its permissions", "read the TLS keys in '%s'", o->psk_file);
	} else if (o->certificates) {
		ret = own_read(f, o, e);
		if (!ret && (o->server ? o->verify_clients : !o->any_peer))
			ret = authorities_read(f, o->certificates, e);
	} else if (store && !o->any_peer) {
		ret = store_read(f);
		if (ret)
			error_errno(e, -ret, "give tls-certificates=DIRECTORY in the address", "read the host's store of CAs");
	}
	if (ret)
		tls_files_free(f);
	return ret;
}

/* --- handing over --- */

int tls_files_get(struct tls_files *f, int fd)
{
	uint32_t len[TLS_PARTS];
	off_t at = sizeof(len);
	int ret = pread(fd, len, sizeof(len), 0) == sizeof(len) ? 0 : -EBADMSG;

	*f = (struct tls_files){ 0 };
	for (int p = 0; p < TLS_PARTS && !ret; at += len[p++]) {
		ret = len[p] ? part_room(f, p, len[p]) : 0;
		f->len[p] = ret ? 0 : len[p];
		if (!ret && len[p] && pread(fd, f->bytes[p], len[p], at) != (ssize_t)len[p])
			ret = -EBADMSG;
	}
	if (ret)
		tls_files_free(f);
	return ret;
}

int nbd_tls_export(const struct nbd_tls_options *o, struct error *e)
{
	struct tls_files f;
	struct iovec parts[1 + TLS_PARTS] = { { f.len, sizeof(f.len) } };
	int ret = tls_files_read(&f, o, true, e);

	if (ret)
		return ret;
	for (int p = 0; p < TLS_PARTS; p++)
		parts[1 + p] = (struct iovec){ f.bytes[p], f.len[p] };
	ret = handover_file("TLS", parts, 1 + TLS_PARTS);
	tls_files_free(&f);
	return ret < 0 ? error_errno(e, -ret, NULL, "hand over TLS certificates") : ret;
}
