/* crypto ALGORITHM COUNT: COUNT buffers of 64 KiB through one of libcrypto's ciphers or digests. */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFER = 65536 };
static unsigned char in[BUFFER], out[BUFFER + 64], sum[EVP_MAX_MD_SIZE];

static void print(const unsigned char *p, unsigned n)
{
	while (n--)
		printf("%02x", *p++);
	putchar('\n');
}

static int digest(const EVP_MD *md, unsigned count)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	unsigned n = 0;
	if (!EVP_DigestInit_ex(ctx, md, NULL))
		return 1;
	while (count--)
		EVP_DigestUpdate(ctx, in, BUFFER);
	EVP_DigestFinal_ex(ctx, sum, &n);
	EVP_MD_CTX_free(ctx);
	print(sum, n);
	return 0;
}

/* The last buffer and, where the cipher authenticates, the tag depend on all that went before. */
static int encrypt(const EVP_CIPHER *cipher, unsigned count)
{
	static const unsigned char key[32] = { 1, 2, 3 }, iv[16] = { 4, 5, 6 };
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	int n;
	if (!EVP_EncryptInit_ex(ctx, cipher, NULL, key, iv))
		return 1;
	while (count--)
		if (!EVP_EncryptUpdate(ctx, out, &n, in, BUFFER))
			return 1;
	print(out, 32);
	if (EVP_EncryptFinal_ex(ctx, out, &n) &&
	    EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, sum) > 0)
		print(sum, 16);
	EVP_CIPHER_CTX_free(ctx);
	return 0;
}

static int run(const char *name, unsigned count)
{
	const EVP_MD *md = EVP_get_digestbyname(name);
	const EVP_CIPHER *cipher = EVP_get_cipherbyname(name);
	return md ? digest(md, count) : cipher ? encrypt(cipher, count) : 1;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	for (unsigned i = 0; i < BUFFER; i++)
		in[i] = (unsigned char)(i * 13 + (i >> 8));
	/* One pass to warm up. */
	if (run(argv[1], 20))
		return 1;
	puts("ready");
	fflush(stdout);
	return run(argv[1], (unsigned)atoi(argv[2]));
}
