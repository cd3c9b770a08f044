/* Workloads in user mode alone: integers, branches, calls, floating point, memory. */
#include "workloads.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

uint32_t lcg(uint32_t *state)
{
	return *state = *state * 1664525u + 1013904223u;
}

/* The compiler must take *p as read and written by somebody. */
static void keep(void *p)
{
	__asm__ volatile("" : : "r"(p) : "memory");
}

static uint64_t alu(void)
{
	uint64_t a = 1, b = 2, c = 3;
	for (uint32_t i = 0; i < 6000000; i++) {
		a += b ^ i;
		b = (b << 3 | b >> 61) + c;
		c ^= a * 5;
	}
	return a + b + c;
}

/* A tokenizer over text that no predictor knows; the empty asm keeps the branches from becoming moves. */
static uint64_t branches(void)
{
	uint32_t s = 5, words = 0, digits = 0, spaces = 0, others = 0, in_word = 0;
	for (int i = 0; i < 1000000; i++) {
		uint32_t c = lcg(&s) >> 25;
		if (c >= 'a' && c <= 'z') {
			if (!in_word) {
				words++;
				__asm__ volatile("");
			}
			in_word = 1;
		} else if (c >= '0' && c <= '9') {
			digits++;
			__asm__ volatile("");
		} else if (c <= ' ') {
			spaces++;
			in_word = 0;
			__asm__ volatile("");
		} else {
			others += c & 3;
			in_word = 0;
			__asm__ volatile("");
		}
	}
	return words + digits * 3ull + spaces * 5ull + others * 7ull;
}

static uint64_t sieve(void)
{
	static uint8_t s[1 << 20];
	uint64_t n = 0;
	memset(s, 1, sizeof s);
	for (unsigned i = 2; i < sizeof s; i++) {
		if (!s[i])
			continue;
		n += i;
		for (unsigned j = 2 * i; j < sizeof s; j += i)
			s[j] = 0;
	}
	return n;
}

static void quick(int *a, int lo, int hi)
{
	while (lo < hi) {
		int p = a[(lo + hi) / 2], i = lo, j = hi;
		while (i <= j) {
			while (a[i] < p)
				i++;
			while (a[j] > p)
				j--;
			if (i <= j) {
				int t = a[i];
				a[i++] = a[j];
				a[j--] = t;
			}
		}
		quick(a, lo, j);
		lo = i;
	}
}

static uint64_t sort_into(int *a, int n)
{
	uint32_t s = 7;
	for (int i = 0; i < n; i++)
		a[i] = (int)lcg(&s);
	quick(a, 0, n - 1);
	return (uint32_t)a[n / 2];
}

static uint64_t sort(void)
{
	static int a[200000];
	return sort_into(a, 200000);
}

static __attribute__((noinline)) uint32_t fib(uint32_t n)
{
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static uint64_t calls(void)
{
	return fib(32);
}

static uint32_t f_a(uint32_t x) { return x + 1; }
static uint32_t f_b(uint32_t x) { return x ^ 3; }
static uint32_t f_c(uint32_t x) { return x * 5; }
static uint32_t f_d(uint32_t x) { return x - 7; }

static uint64_t indirect(void)
{
	uint32_t (*volatile f[4])(uint32_t) = { f_a, f_b, f_c, f_d };
	uint32_t x = 1, s = 3;
	for (int i = 0; i < 1000000; i++)
		x = f[lcg(&s) >> 30](x);
	return x;
}

static uint64_t hash(void)
{
	static uint32_t w[1 << 16];
	uint32_t h[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
	for (int r = 0; r < 10; r++)
		for (int i = 0; i < 1 << 16; i++) {
			uint32_t e = h[4], t = h[7] + ((e >> 6 | e << 26) ^ (e >> 11 | e << 21) ^ (e >> 25 | e << 7)) +
					       ((e & h[5]) ^ (~e & h[6])) + w[i];
			memmove(h + 1, h, 28);
			h[4] += t;
			h[0] = t + (h[1] >> 2 ^ h[1] << 30);
			w[i] = r == 9 ? 0 : h[0];
		}
	return h[0];
}

/* The Mandelbrot set: scalar double arithmetic and compares, nothing in memory. */
static uint64_t scalar(void)
{
	uint64_t n = 0;
	for (int y = 0; y < 80; y++)
		for (int x = 0; x < 80; x++) {
			double cr = x / 40.0 - 1.5, ci = y / 40.0 - 1, zr = 0, zi = 0;
			int i = 0;
			for (; i < 400 && zr * zr + zi * zi < 4; i++) {
				double t = zr * zr - zi * zi + cr;
				zi = 2 * zr * zi + ci;
				zr = t;
			}
			n += (unsigned)i + (uint64_t)(sqrt(fabs(zr)) * 16);
		}
	return n;
}

static uint64_t matmul(void)
{
	enum { N = 160 };
	static double a[N][N], b[N][N];
	double sum = 0;
	for (int i = 0; i < N * N; i++) {
		(&a[0][0])[i] = i % 17;
		(&b[0][0])[i] = i % 13;
	}
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++) {
			double t = 0;
			for (int k = 0; k < N; k++)
				t += a[i][k] * b[k][j];
			sum += t;
		}
	return (uint64_t)sum;
}

typedef float v4 __attribute__((vector_size(16)));

static uint64_t packed(void)
{
	v4 x = { 1, 2, 3, 4 }, y = { 0.5f, 0.25f, 1.5f, 1 }, z = { 0 };
	for (int i = 0; i < 2000000; i++) {
		z += x * y;
		x = x * 0.9999f + y;
	}
	return (uint64_t)z[0];
}

static uint64_t x87(void)
{
	long double x = 1, y = 0;
	for (int i = 1; i < 2000000; i++) {
		y += x / i;
		x = -x * 1.0000001L;
	}
	return (uint64_t)(y * 1000);
}

static uint64_t stream(void)
{
	enum { N = 2 << 20 };
	static uint64_t a[N], b[N];
	uint64_t sum = 0;
	for (int i = 0; i < N; i++)
		a[i] = b[i] + 7;
	keep(a);
	keep(b);
	for (int i = 0; i < N; i += 4096)
		sum += a[i];
	return sum;
}

/* A random cycle through a table: every load waits for the one before. */
static uint64_t walk(uint32_t *next, uint32_t n, uint32_t steps)
{
	uint32_t s = 1, p = 0;
	if (next[0] == next[1]) {
		for (uint32_t i = 0; i < n; i++)
			next[i] = i;
		for (uint32_t i = n - 1; i; i--) {
			uint32_t j = lcg(&s) % i, t = next[i];
			next[i] = next[j];
			next[j] = t;
		}
	}
	for (uint32_t i = 0; i < steps; i++)
		p = next[p];
	return p;
}

static uint64_t chase(void)	/* 1 MiB: the second-level cache */
{
	static uint32_t next[1 << 18];
	return walk(next, 1 << 18, 2000000);
}

static uint64_t latency(void)	/* 64 MiB: beyond any TLB */
{
	static uint32_t next[1 << 24];
	return walk(next, 1 << 24, 200000);
}

static uint64_t repmovs(void)
{
	static uint8_t a[1 << 16], b[1 << 16];
	for (unsigned i = 0; i < sizeof b; i++)
		b[i] = (uint8_t)(i * 7);
	for (int i = 0; i < 5000; i++) {
		void *d = a;
		const void *q = b;
		size_t n = sizeof a;
		__asm__ volatile("rep movsb" : "+D"(d), "+S"(q), "+c"(n) : : "memory");
	}
	return a[3] + a[65535] * 256ull;
}

/* What each thread of the scaling workloads does, on memory of its own. */
static void *share(void *arg)
{
	uint64_t *sum = arg;
	int *a = malloc(200000 * sizeof *a);
	*sum = a ? sort_into(a, 200000) + fib(27) + scalar() : BENCH_FAILED;
	free(a);
	return NULL;
}

static uint64_t threads(unsigned n)
{
	pthread_t thread[2];
	uint64_t sum[2] = { 0 };
	for (unsigned i = 0; i < n; i++)
		if (pthread_create(&thread[i], NULL, share, &sum[i]))
			return BENCH_FAILED;
	for (unsigned i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	return sum[0] == BENCH_FAILED || sum[1] == BENCH_FAILED ? BENCH_FAILED : sum[0] + sum[1];
}

static uint64_t thread1(void)
{
	return threads(1);
}

static uint64_t thread2(void)
{
	return threads(2);
}

const struct workload compute_workloads[] = {
	{ "alu", alu, 20 }, { "branches", branches, 12 }, { "calls", calls, 20 }, { "indirect", indirect, 20 },
	{ "sort", sort, 8 }, { "sieve", sieve, 30 }, { "hash", hash, 30 }, { "scalar", scalar, 25 },
	{ "packed", packed, 30 }, { "matmul", matmul, 60 }, { "x87", x87, 15 }, { "stream", stream, 40 },
	{ "chase", chase, 10 }, { "latency", latency, 5 }, { "repmovs", repmovs, 10 }, { "thread1", thread1, 8 },
	{ "thread2", thread2, 8 }, { 0 },
};
