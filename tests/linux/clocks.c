/*
 * Watches a guest's clocks from within (tandem.clocks on its command line): CLOCK_MONOTONIC and CLOCK_REALTIME in a
 * loop with pauses, and RDTSC in one without. Once a second, what it has seen goes into the key tandem:clocks of the
 * redis-server beside it, as JSON: readings, how far one ever lay behind the one before, and the longest step from one
 * to the next, in nanoseconds.
 */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct seen {
	volatile uint64_t readings, back, step, last;
};

static void note(struct seen *seen, uint64_t now)
{
	if (seen->readings) {
		if (now < seen->last && seen->last - now > seen->back)
			seen->back = seen->last - now;
		if (now > seen->last && now - seen->last > seen->step)
			seen->step = now - seen->last;
	}
	if (!seen->readings || now > seen->last)
		seen->last = now;
	seen->readings++;
}

static uint64_t nanoseconds(clockid_t which)
{
	struct timespec t;

	clock_gettime(which, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint64_t rdtsc(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

static void hammer(struct seen *seen)
{
	/* A fifth or so of the CPU; the rest is redis-server's. */
	setpriority(PRIO_PROCESS, 0, 5);
	for (;;)
		note(seen, rdtsc());
}

static int report(int redis, const char *json)
{
	char text[1024], reply[64];
	int length = snprintf(text, sizeof(text), "*3\r\n$3\r\nSET\r\n$13\r\ntandem:clocks\r\n$%zu\r\n%s\r\n",
			      strlen(json), json);

	return write(redis, text, length) == length && read(redis, reply, sizeof(reply)) > 0 ? 0 : -1;
}

int main(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(6379),
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct seen *seen = mmap(NULL, 3 * sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct seen *monotonic = seen, *real = seen + 1, *tsc = seen + 2;
	int redis = socket(AF_INET, SOCK_STREAM, 0);
	uint64_t start, start_tsc, next;
	char json[512];

	if (seen == MAP_FAILED || connect(redis, (struct sockaddr *)&address, sizeof(address)))
		return perror("clocks"), 1;
	start = next = nanoseconds(CLOCK_MONOTONIC);
	start_tsc = rdtsc();
	switch (fork()) {
	case -1:
		return perror("clocks"), 1;
	case 0:
		hammer(tsc);
	}
	for (unsigned reports = 1;; reports++) {
		uint64_t now;
		double cycle;

		next += 1000000000;
		do {
			for (int n = 0; n < 5; n++) {
				note(monotonic, nanoseconds(CLOCK_MONOTONIC));
				note(real, nanoseconds(CLOCK_REALTIME));
			}
			usleep(20000);
			now = nanoseconds(CLOCK_MONOTONIC);
		} while (now < next);
		cycle = (double)(now - start) / (rdtsc() - start_tsc);
		snprintf(json, sizeof(json),
			 "{\"reports\":%u,"
			 "\"monotonic\":{\"readings\":%llu,\"back\":%llu,\"step\":%llu},"
			 "\"real\":{\"readings\":%llu,\"back\":%llu,\"step\":%llu},"
			 "\"tsc\":{\"readings\":%llu,\"back\":%llu,\"step\":%llu}}", reports,
			 (unsigned long long)monotonic->readings, (unsigned long long)monotonic->back,
			 (unsigned long long)monotonic->step,
			 (unsigned long long)real->readings, (unsigned long long)real->back,
			 (unsigned long long)real->step,
			 (unsigned long long)tsc->readings, (unsigned long long)(tsc->back * cycle),
			 (unsigned long long)(tsc->step * cycle));
		if (report(redis, json))
			return perror("clocks"), 1;
	}
}
